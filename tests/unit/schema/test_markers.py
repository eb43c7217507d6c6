"""Marks of fields: every field that needs one has one, and all else follows from them."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from mloc_dagster.client import body_of_file
from mloc_dagster.compile import compile_files, load_documents, resolve_references
from mloc_dagster.errors import DataError
from mloc_dagster.net import OutOfReachError, Reach
from mloc_dagster.results import open_store, put_aside, put_back
from mloc_dagster.schema.base import Annotation, alternatives
from mloc_dagster.schema.markers import FileRef, marked
from mloc_dagster.schema.task import InferenceSpec
from mloc_dagster.schema.task_type import find_task_type, task_types
from mloc_dagster.schema.template import marked_values
from tests.api_server import serving
from tests.unit.executors.test_registry import lay_down, plug_ins

__all__ = ["plug_ins"]

TELLING = re.compile(
    r"(?:^|_)(?:urls?|uri|endpoint|host|address|paths?|files?|folder|dir|identifier|dataset_name"
    r"|key|token|secret|password|headers|credentials?)$"
)
NOT_MARKED = {
    "CheckpointLoad.file": "a name in the manifest of an earlier task",
    "TemplateColumn.path": "a place in the result of an earlier task",
}


def blocks_in(annotation: Annotation, known: dict[type[BaseModel], None]) -> None:
    for member in alternatives(annotation):
        if isinstance(member, type) and issubclass(member, BaseModel):
            if member not in known:
                known[member] = None
                for field in member.model_fields.values():
                    blocks_in(field.annotation, known)
        else:
            for inner in get_args(member):
                blocks_in(inner, known)


def unmarked(spec: type[BaseModel]) -> Iterator[str]:
    """Yields fields for text that are named like a file, a URL or a secret, and have no mark."""
    known: dict[type[BaseModel], None] = {}
    blocks_in(spec, known)
    for block in known:
        for name, field in block.model_fields.items():
            key = field.alias or name
            is_text = re.search(r"\bstr\b|SecretStr|JsonValue", str(field.annotation))
            values: list[Any] = ["x", ["x"], {"a": "x"}]
            has_mark = any(list(marked(block, {key: value})) for value in values)
            if TELLING.search(name) and is_text and not has_mark:
                yield f"{block.__name__}.{name}"


@pytest.mark.parametrize("name", task_types())
def test_what_is_named_like_a_file_a_url_or_a_secret_is_marked(name: str) -> None:
    """Also of plug-ins that are installed. A field that means something else is listed above."""
    missing = set(unmarked(find_task_type(name).spec)) - NOT_MARKED.keys()
    assert not missing, f"mark these (mloc_dagster.schema.markers): {', '.join(sorted(missing))}"


def test_a_part_of_a_block_is_walked_without_its_type() -> None:
    for data in ({"url": "a"}, {"type": "dataset", "url": "a"}, {"type": "${x}", "url": "a"}):
        (found,) = marked(InferenceSpec, {"data": data})
        assert (found.path, found.marker) == (("data", "url"), FileRef())
    assert not list(marked(InferenceSpec, {"data": {"type": "list", "url": "a"}}))
    assert not list(marked(InferenceSpec, {"data": "a", "model": ["b"], "output": None}))


def test_nodes_are_walked_as_what_they_are() -> None:
    stages = [
        {"spec": {"taskType": "sft", "data": {"dataset_name": "a"}}},
        {"spec": {"taskType": "echo", "data": {"dataset_name": "no field of it"}}},
    ]
    spec = {"data": {"url": "b"}, "stages": stages}
    places = {(*spec, *each.path) for spec, each in marked_values({"spec": spec})}
    assert places == {
        ("spec", "data", "url"),
        ("spec", "stages", 0, "spec", "data", "dataset_name"),
    }
    for broken in ({"spec": 1}, {}, {"spec": {"stages": 3, "graph": [], "taskType": []}}):
        assert not list(marked_values(broken))  # type: ignore[arg-type]


PLUG_IN = '''
from collections.abc import Mapping
from typing import Annotated
from pydantic import JsonValue, SecretStr
from mloc_dagster.executors.echo import EchoExecutor
from mloc_dagster.schema.base import Block
from mloc_dagster.schema.markers import FileRef, LibraryOptions, ResultPath, Secret, Url
from mloc_dagster.schema.task import RowSpec
from mloc_dagster.schema.task_type import TaskType

OPTIONS = LibraryOptions(lambda path, value: path[0] == "k")

type Corpus = Annotated[str, FileRef()]

class Search(Block):
    corpus: Corpus
    more: Annotated[tuple[str, ...], FileRef()] = ()
    server: Annotated[str, Url()] = "https://93.184.215.14"
    word: Annotated[str | None, Secret()] = None
    words: Mapping[str, SecretStr] = {}
    copy_to: Annotated[str, ResultPath()] = "copies"
    arguments: Annotated[Mapping[str, JsonValue], OPTIONS] = {}

class Unmarked(Block):
    index_url: str = ""
    auth_token: str = ""
    max_tokens: int = 3

class SearchSpec(RowSpec):
    """Searches."""
    search: Search
    other: Unmarked = Unmarked()

SEARCH = TaskType(name="search", spec=SearchSpec, executor=EchoExecutor, kinds=("SearchTask",))
'''

TEMPLATE = """\
apiVersion: mloc/v1
kind: SearchTask
metadata: {name: s}
spec:
  data: {type: list, items: [a]}
  search:
    corpus: corpus.txt
"""


@pytest.fixture
def template(plug_ins: Path, tmp_path: Path) -> Path:
    """A template with a task type of another distribution."""
    (plug_ins / "searching_plugin.py").write_text(PLUG_IN)
    lay_down(plug_ins, "mloc-searching", "search = searching_plugin:SEARCH")
    folder = tmp_path / "templates"
    folder.mkdir()
    for name in ("corpus.txt", "more.txt"):
        (folder / name).write_text("text")
    (folder / "t.yaml").write_text(TEMPLATE)
    return folder / "t.yaml"


def test_a_plug_ins_fields_without_a_mark_are_found(template: Path) -> None:
    spec = find_task_type("search").spec
    found = set(unmarked(spec)) - NOT_MARKED.keys()
    assert found == {"Unmarked.index_url", "Unmarked.auth_token"}


def test_a_plug_ins_files_are_named_relative_to_the_template_and_sent_along(template: Path) -> None:
    template.write_text(TEMPLATE + "    more: [./more.txt, none.txt]\n")
    search = load_documents(template)[0].mapping["spec"]["search"]  # type: ignore[index, call-overload]
    assert search["corpus"] == str(template.parent / "corpus.txt")  # type: ignore[index, call-overload]
    assert search["more"] == [str(template.parent / "more.txt"), "none.txt"]  # type: ignore[index, call-overload]
    assert sorted(body_of_file(template).files) == ["corpus.txt", "more.txt"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("more: [/etc/passwd]", "MLOC_API_DATA_ROOTS"),
        ("more: ['http://127.0.0.1/a']", "MLOC_API_PRIVATE_ADDRESSES"),
        ("server: 'http://2852039166/a'", "link-local"),
        ("server: 'https://${HOME}/a'", "MLOC_API_VARIABLES"),
        ("word: '${HOME}'", "MLOC_API_VARIABLES"),
        ("words: {a: '${HOME}'}", "MLOC_API_VARIABLES"),
        ("copy_to: .dagster", "only mloc itself"),
        ("arguments: {plugin: {path: x}}", "MLOC_API_OPTIONS=search.arguments.plugin"),
    ],
)
def test_a_plug_ins_template_is_refused_by_the_api_where_it_stands(
    template: Path, line: str, said: str
) -> None:
    text = TEMPLATE + f"    {line}\n"
    files = [("template", ("t.yaml", text)), ("file", ("corpus.txt", b"text"))]
    with serving() as api:
        answer = api.client.post("/api/v1/tasks", files=files)
        assert answer.status_code == 422, answer.text
        (error,) = answer.json()["errors"]
        assert (error["line"], said in error["message"]) == (8, True), error
    spec = compile_files([template])[0][0].tasks[0].mapping
    name, _, value = line.partition(": ")
    if "http" not in line:  # of which the worker looks at the address when it connects
        import yaml

        search = {"corpus": "s3://a/b", name: yaml.safe_load(value)}
        with pytest.raises(OutOfReachError, match=r"^spec\.search\."):
            Reach("api").check_spec({**spec, "search": search})


def test_a_plug_ins_uploads_and_safe_options_are_accepted(template: Path) -> None:
    text = TEMPLATE + "    more: [./more.txt]\n    arguments: {k: 3}\n    word: plain\n"
    files = [("template", ("t.yaml", text))]
    files += [("file", (name, b"text")) for name in ("corpus.txt", "more.txt")]  # type: ignore[list-item]
    with serving() as api:
        answer = api.client.post("/api/v1/tasks", files=files)
        assert answer.status_code == 202, answer.text


def test_a_plug_ins_secrets_lie_apart_and_in_no_message(template: Path) -> None:
    secrets = "    word: s3cret\n    words: {a: s3cret}\n    server: https://me:s3cret@host/x\n"
    template.write_text(TEMPLATE + secrets)
    document = compile_files([template])[0][0].document
    store = open_store(f"memory://{uuid.uuid4().hex}")
    public = put_aside(store, "t", document)
    assert "s3cret" not in json.dumps(public)
    assert put_back(store, "t", public) == document
    for wrong in ("word: [s3cret]", "words: s3cret", "words: [s3cret]"):
        template.write_text(TEMPLATE + f"    {wrong}\n")
        (finding,) = compile_files([template])[1]
        assert "got something else" in str(finding)
        assert "s3cret" not in str(finding)


def test_a_result_names_no_variable_in_a_plug_ins_marked_field(template: Path) -> None:
    spec: dict[str, Any] = {"taskType": "search", "search": {"word": "${a.result.model}"}}
    with pytest.raises(DataError, match="must not come from a result"):
        resolve_references(spec, lambda _: "${SECRET}")
