from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from mloc_dagster.compile.compiler import compile_document, compile_mapping
from mloc_dagster.compile.diagnostics import find
from mloc_dagster.compile.loader import MAX_BYTES, load_documents, parse_documents
from mloc_dagster.errors import TemplateError


def refusal(text: str | bytes) -> str:
    with pytest.raises(TemplateError) as caught:
        parse_documents(text, "t.yaml")
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1", "t.yaml:2:1: not valid YAML"),
        ("a:\n\tb: 1", "t.yaml:2:1: a tab cannot indent YAML"),
        (b"a: 1\nb: \xff", "t.yaml:2:4: not UTF-8: byte 0xff at offset 8"),
        ("a: 1\nb: 2\na: 3", "t.yaml:3:1: a: the key 'a' stands here twice; first in line 1"),
        ("x: &x [*x]", "t.yaml:1:8: x[0]: the alias *x stands inside"),
        ("a: &one 1\nb: *on", "nothing above is anchored as &on; did you mean 'one'?"),
        ("[" * 80 + "]" * 80, "nested more than 64 levels deep"),
        ("? " * 80 + "a", "nested more than 64 levels deep"),
        ("", "t.yaml: the file is empty"),
        ("---\n---\n# nothing\n", "t.yaml: the file is empty"),
        ("- a", "t.yaml:1:1: a template is a mapping"),
        ("on: 1", "a key must be text, not 'on', which YAML reads as True; write it in quotes"),
        ("1: 1", "a key must be text, not '1'"),
        ("? [a]\n: 1", "a key must be text, not a list or a mapping"),
        ("a: !!python/object/apply:os.system [x]", "the tag !!python/object/apply:os.system"),
        ("a: !!binary aGk=", "the tag !!binary is not allowed"),
        ("a: !secret x", "the tag !secret is not allowed"),
        ("a: .inf", "'.inf' is not a finite number"),
        ("a: 1e999", "too large for a number; quote it"),
        ("a: " + "9" * 5000, "too large for a number; quote it"),
        ("a: \x00", "YAML does not allow this character"),
        ("a: \ud800", "half of a surrogate pair"),
        ("a:\n  <<: 3", "`<<` takes a mapping"),
    ],
)
def test_what_is_no_template_is_refused_with_its_place(text: str | bytes, message: str) -> None:
    assert message in refusal(text)


def test_all_findings_of_a_file_come_at_once() -> None:
    assert refusal("a: 1\na: 2\nb: !x y\nno: 3").count("\n") == 2


def test_an_alias_bomb_is_refused() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 9)]
    assert "more than 250,000 values, aliases expanded" in refusal("\n".join(lines))


def test_anchors_aliases_and_merge_keys_work() -> None:
    text = "base: &b {x: 1, y: {z: 2}}\nuse: *b\nover:\n  <<: [*b, {w: 4, x: 5}]\n  y: 3\n"
    (document,) = parse_documents(text, "t.yaml")
    assert document.mapping["use"] == {"x": 1, "y": {"z": 2}}
    assert document.mapping["over"] == {"x": 1, "y": 3, "w": 4}


def test_scalars_mean_what_a_reader_expects() -> None:
    text = (
        "rate: 5e-7\ndate: 2024-01-01\ntime: 12:30:00\nyes_: yes\nquoted: 'no'\nnull_: ~\n"
        "hex: 0x10\nfloat: 1.5\nint: -3\nstr: !!str 5\nversion: 1.2.3\n"
    )
    assert parse_documents(text, "t.yaml")[0].mapping == {
        "rate": 5e-7,
        "date": "2024-01-01",
        "time": "12:30:00",
        "yes_": True,
        "quoted": "no",
        "null_": None,
        "hex": 16,
        "float": 1.5,
        "int": -3,
        "str": "5",
        "version": "1.2.3",
    }


def test_each_value_knows_its_place() -> None:
    (_, document) = parse_documents("a: 1\n---\nlist:\n  - x\n  - key: {deep: v}\n", "t.yaml")
    deep = find(document.root, ("list", 1, "key", "deep"))
    assert deep is not None
    assert deep.at == ("t.yaml", 5, 17)
    assert deep.key == ("t.yaml", 5, 11)
    assert deep.path == ("list", 1, "key", "deep")


def test_a_large_file_is_refused_before_it_is_parsed(tmp_path: Path) -> None:
    path = tmp_path / "large.yaml"
    # Broken from its first line on: that this is not what is said shows that nobody parsed it.
    path.write_bytes(b"}" * (2 * MAX_BYTES))
    with pytest.raises(TemplateError, match="larger than 5 MB"):
        load_documents(path)


def test_a_missing_file_names_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "demo.yaml").touch()
    with pytest.raises(TemplateError, match=r"no such file; did you mean 'demo\.yaml'"):
        load_documents(tmp_path / "demp.yaml")


def test_a_folder_is_no_template(tmp_path: Path) -> None:
    with pytest.raises(TemplateError, match="is a folder"):
        load_documents(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_forbidden_file_says_so(tmp_path: Path) -> None:
    path = tmp_path / "t.yaml"
    path.touch(mode=0)
    with pytest.raises(TemplateError, match="permission denied"):
        load_documents(path)


_PIECES = (
    *("a", "b: ", "- ", "\n", "  ", "{", "}", "[", "]", "&x ", "*x", "<<: ", "? ", ": ", "'", '"'),
    *("!!int ", "!t ", "|\n", "---\n", "\t", "5e-7", "0x", "on", "#", "%", "spec", "..."),
)
_YAMLISH = st.lists(st.sampled_from(_PIECES)).map("".join)


@given(st.one_of(st.text(), st.binary(), _YAMLISH))
def test_no_text_makes_the_loader_fall_over(text: str | bytes) -> None:
    with suppress(TemplateError):
        for document in parse_documents(text, "t.yaml"):
            compile_document(document)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)
_SPEC_KEYS = ["taskType", "data", "model", "inference", "stages", "graph", "slo", "schedule", "x"]


@given(st.dictionaries(st.sampled_from(_SPEC_KEYS), _JSON), _JSON)
def test_no_mapping_makes_the_compiler_fall_over(spec: dict[str, object], data: object) -> None:
    document = {
        "apiVersion": "mloc/v1",
        "kind": "EchoTask",
        "metadata": {"name": "t"},
        "spec": {"data": data, **spec},
    }
    with suppress(TemplateError):
        compile_mapping(document)  # type: ignore[arg-type]


def test_a_pipe_is_no_template_and_is_never_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "t.yaml")
    for path in (tmp_path / "t.yaml", Path("/dev/zero")):
        with pytest.raises(TemplateError, match="is a pipe or a device; name a regular file"):
            load_documents(path)
