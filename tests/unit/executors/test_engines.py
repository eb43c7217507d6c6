"""Engines are found by entry point, ours and anyone's: a third one is two files."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from mloc_dagster.compile import anchor_files, compile_document, parse_documents
from mloc_dagster.errors import TemplateError, TerminalError
from mloc_dagster.executors.base import ShardContext, ShardInput
from mloc_dagster.executors.engines.choice import choose_engine, likely_engine, loader_of
from mloc_dagster.executors.input_planning import plan_input
from mloc_dagster.executors.reuse_identity import (
    LoadedFiles,
    NoReuseError,
    file_stamps,
    model_identity,
    remember_files,
)
from mloc_dagster.executors.task_start import task_executor
from mloc_dagster.plugins import load_registered
from mloc_dagster.results import InputRow, OutputRow
from mloc_dagster.schema import engine_types, find_engine, template_json_schema
from mloc_dagster.settings import settings
from scripts.build_template_docs import render_docs

DESCRIPTOR = '''
from typing import Annotated, Literal
from mloc_dagster.schema.base import Block
from mloc_dagster.schema.engine_type import EngineType, Refusal
from mloc_dagster.schema.markers import FileRef

class MirrorOptions(Block):
    """How the mirror is held."""
    side: Literal["left", "right"] = "left"
    """Which side it hangs on."""
    depth: int = 1
    """How deep one looks."""
    glass: Annotated[str | None, FileRef()] = None
    """A file with the glass."""
    trust_remote_code: bool = False
    beam: int = 1

class NeedyOptions(Block):
    """Wants something."""
    much: int

def refuses(options, demand):
    if options.depth > 9 and demand.certain:
        yield Refusal(("depth",), f"a mirror is not {options.depth} deep")

MIRROR = EngineType(
    name="mirror",
    label="the mirror",
    options=MirrorOptions,
    loader="mirror_plugin.engine:MirrorLoader",
    abilities=frozenset({"generate", "logprobs"}),
    claims=("glass",),
    takes=frozenset({"dtype"}),
    shares=lambda options: {"max_model_len": options.depth},
    refuses=refuses,
    batching=frozenset({"beam"}),
)
BEST = EngineType(name="best", label="the best", options=MirrorOptions, order=1,
                  loader="mirror_plugin.engine:MirrorLoader")
NEEDY = EngineType(name="needy", label="needy", options=NeedyOptions, loader="x:Y")
SOURCE = EngineType(name="source", label="source", options=MirrorOptions, loader="x:Y")
LOST = EngineType(name="lost", label="lost", options=MirrorOptions, loader="mirror_plugin.no:X")
'''
ENGINE = """
from mloc_dagster.executors.engines.protocol import (
    Answer, Completion, EngineLoader, Rendered,
)
from mirror_plugin import MirrorOptions

class MirrorLoader(EngineLoader):
    def load(self, spec):
        options = spec.model.options(self.engine.name, MirrorOptions)
        return Mirror(spec.model.source.identifier, options)

class Mirror:
    label, revision, device, size_bytes = "mirror 1.2", "sha256:0", "cpu", 0

    def __init__(self, name, options):
        self.name, self._options = name, options

    def render(self, row, block):
        return Rendered(row.prompt)

    def tokenize(self, texts, *, special=True):
        return [list(map(ord, text)) for text in texts]

    def run(self, requests, replies):
        for request in requests:
            text = request.rendered.text[::-1] * self._options.depth
            answer = Answer(text, "stop", len(text))
            replies.done(request, Completion(answers=(answer,), prompt_tokens=len(request.tokens)))

    def close(self):
        pass
"""


@pytest.fixture
def plug_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of a distribution with an engine, which is on the path."""
    monkeypatch.syspath_prepend(tmp_path)
    load_registered.cache_clear()
    lay_down(tmp_path)
    yield tmp_path
    load_registered.cache_clear()
    for name in [name for name in sys.modules if name.startswith("mirror_plugin")]:
        sys.modules.pop(name)


def lay_down(folder: Path) -> None:
    (folder / "mirror_plugin").mkdir()
    (folder / "mirror_plugin" / "__init__.py").write_text(DESCRIPTOR)
    (folder / "mirror_plugin" / "engine.py").write_text(ENGINE)
    register(folder, mirror="mirror_plugin:MIRROR")


def register(folder: Path, name: str = "mloc-mirror", **entries: str) -> None:
    info = folder / f"{name.replace('-', '_')}-1.2.dist-info"
    info.mkdir(exist_ok=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n")
    lines = [f"{entry} = {value}" for entry, value in entries.items()]
    (info / "entry_points.txt").write_text("\n".join(["[mloc_dagster.engines]", *lines, ""]))


TEMPLATE = """\
apiVersion: mloc/v1
kind: InferenceTask
metadata: {name: t}
spec:
  taskType: inference
  data: {type: list, items: [abc, de]}
  model:
    source: {type: builtin, identifier: tiny-chat}
"""


def compiled(model: str, more: str = "") -> Any:
    lines = "".join(f"    {line}\n" for line in model.split("; "))
    return compile_document(parse_documents(TEMPLATE + lines + more, "t.yaml")[0])


def spec_of(model: str, more: str = "") -> Any:
    return compiled(model, more).tasks[0].task.spec


def findings(model: str, more: str = "") -> list[str]:
    with pytest.raises(TemplateError) as caught:
        compiled(model, more)
    return [str(each) for each in caught.value.diagnostics]


def answers(spec: Any) -> dict[int, OutputRow]:
    executor, emitted = task_executor("inference"), dict[int, OutputRow]()
    engine = executor.load(spec)
    context = ShardContext(
        lambda row: emitted.__setitem__(row.index, row), lambda: False, lambda line: None
    )
    rows = [InputRow(number, text) for number, text in enumerate(spec.data.items)]
    executor.run(ShardInput("t", 0, 1, 7, iter(rows), len(rows)), spec, engine, context)
    executor.unload(engine)
    return emitted


def test_our_own_engines_come_in_by_the_public_door() -> None:
    assert list(engine_types()) == ["vllm", "transformers", "openai", "scripted"]


@pytest.mark.usefixtures("plug_in")
def test_an_engine_of_another_distribution_answers_like_ours() -> None:
    found = answers(spec_of("engine: mirror; mirror: {depth: 2}"))
    assert {row: each.output for row, each in found.items()} == {0: "cbacba", 1: "eded"}
    assert found[0].engine == "mirror 1.2"


@pytest.mark.usefixtures("plug_in")
def test_wrong_options_are_errors_at_their_line_with_the_nearest_name() -> None:
    assert findings("engine: mirror; mirror: {dept: 2, side: lift}") == [
        "t.yaml:10:14: spec.model.mirror.dept: unknown key 'dept'; did you mean 'depth'?",
        "t.yaml:10:29: spec.model.mirror.side: unknown value 'lift'; did you mean 'left'?",
    ]
    assert findings("mirro: {depth: 2}") == [
        "t.yaml:9:5: spec.model.mirro: unknown key 'mirro'; did you mean 'mirror'?"
    ]
    assert findings("mirror: 3") == ["t.yaml:9:13: spec.model.mirror: expected a mapping, got 3"]
    assert findings("engine: miror") == [
        "t.yaml:9:13: spec.model.engine: unknown engine 'miror'; did you mean 'mirror'?"
    ]
    assert findings("engine: mirror; mirror: {depth: 10}") == [
        "t.yaml:10:21: spec.model.mirror.depth: a mirror is not 10 deep"
    ]
    assert compiled("mirror: {depth: 10}")


@pytest.mark.usefixtures("plug_in")
def test_wrong_options_and_wrong_keys_are_found_at_once() -> None:
    assert len(findings("engine: miror; mirror: {dept: 2}; adapter: []")) == 3


@pytest.mark.usefixtures("plug_in")
def test_what_the_engine_cannot_do_is_refused_where_it_is_named() -> None:
    adapters = "adapters: [{path: a/x}]"
    assert findings(f"engine: mirror; {adapters}") == [
        "t.yaml:10:15: spec.model.adapters: the mirror takes no adapters"
    ]
    (form,) = findings("engine: mirror", "  inference: {structured_outputs: {json_object: true}}\n")
    assert form.startswith("t.yaml:10:")
    assert "structured_outputs: the mirror cannot hold answers to a form" in form
    assert spec_of("engine: mirror", "  inference: {logprobs: 2}\n")
    assert spec_of(f"mirror: {{depth: 2}}; {adapters}")  # another engine may run it


@pytest.mark.usefixtures("plug_in")
def test_an_option_of_its_own_chooses_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = spec_of("mirror: {glass: g}; vllm: {dtype: half, max_num_seqs: 3}")
    assert choose_engine(spec).engine is find_engine("mirror")
    assert choose_engine(spec).reason == "model.mirror.glass is its option"
    assert findings("engine: vllm; mirror: {glass: g}") == [
        "t.yaml:10:21: spec.model.mirror.glass: glass is for the mirror: vLLM has none"
    ]
    (warning,) = compiled("mirror: {glass: g}; vllm: {dtype: half, max_num_seqs: 3}").warnings
    assert "model.vllm.max_num_seqs has no effect: this task runs on the mirror" in str(warning)


@pytest.mark.usefixtures("plug_in")
def test_it_is_chosen_where_it_is_named_or_best(
    monkeypatch: pytest.MonkeyPatch, plug_in: Path
) -> None:
    bare = spec_of("adapters: []")
    assert choose_engine(bare).engine is find_engine("transformers")
    monkeypatch.setenv("MLOC_ENGINE", "mirror")
    settings.cache_clear()
    assert choose_engine(bare).reason == "MLOC_ENGINE asks for it"
    assert likely_engine(bare) is find_engine("mirror")
    planning = plan_input(bare)
    assert planning is not None
    assert planning.weights.block_tokens == 0
    assert choose_engine(spec_of("adapters: [{path: a/x}]")).engine is not find_engine("mirror")

    register(plug_in, "mloc-best", best="mirror_plugin:BEST")
    monkeypatch.syspath_prepend(plug_in / "mirror_plugin")  # another path: distributions are new
    monkeypatch.setenv("MLOC_ENGINE", "auto")
    settings.cache_clear()
    assert list(engine_types()) == ["best", "vllm", "transformers", "openai", "mirror", "scripted"]
    assert choose_engine(bare).reason == "it can run here"


@pytest.mark.usefixtures("plug_in")
def test_what_it_answers_and_loads_depends_on_its_own_options(tmp_path: Path) -> None:
    def identity(model: str) -> bytes:
        spec = spec_of(f"engine: mirror; {model}")
        engine = loader_of(find_engine("mirror")).load(spec)
        remember_files(engine, LoadedFiles(file_stamps(spec)))
        return model_identity(spec, engine)

    def key(model: str) -> Any:
        return task_executor("inference").model_key(spec_of(f"engine: mirror; {model}"))

    assert identity("mirror: {depth: 2}") != identity("mirror: {depth: 3}")
    assert identity("mirror: {beam: 2}") == identity("mirror: {beam: 3}")
    assert key("mirror: {depth: 2}") != key("mirror: {depth: 3}")
    assert key("mirror: {beam: 2}") == key("mirror: {beam: 3}")
    glass = tmp_path / "glass"
    glass.write_text("clear")
    before = identity(f"mirror: {{glass: '{glass}'}}")
    glass.write_text("stained")
    assert identity(f"mirror: {{glass: '{glass}'}}") != before
    with pytest.raises(NoReuseError, match="code that comes with the weights"):
        identity("mirror: {trust_remote_code: true}")


def test_a_file_that_an_option_names_may_be_relative_to_the_template(plug_in: Path) -> None:
    (plug_in / "glass").write_text("clear")
    document = parse_documents(TEMPLATE + "    mirror: {glass: glass}\n", "t.yaml")[0]
    anchored = anchor_files(document.root, plug_in).mapping()["spec"]
    assert isinstance(anchored, dict)
    assert anchored["model"] == {
        **document.mapping["spec"]["model"], "mirror": {"glass": str(plug_in / "glass")}
    }  # fmt: skip


@pytest.mark.usefixtures("plug_in")
def test_schema_and_docs_have_its_options() -> None:
    check = Draft202012Validator(template_json_schema())
    document = parse_documents(TEMPLATE, "t.yaml")[0].mapping
    assert not list(check.iter_errors(document))
    document["spec"]["model"] |= {"engine": "mirror", "mirror": {"depth": 3}}
    assert not list(check.iter_errors(document))
    document["spec"]["model"]["mirror"]["dept"] = 3
    assert list(check.iter_errors(document))
    docs = render_docs()
    assert "| `mirror` | [MirrorOptions](#mirroroptions) |  | How the mirror is held. |" in docs
    assert '| `side` | `left`, `right` | `"left"` | Which side it hangs on. |' in docs


def test_a_broken_plug_in_is_an_error_only_where_it_is_named(plug_in: Path) -> None:
    register(plug_in, mirror="mirror_plugin:NOTHING")
    said = "the engine 'mirror' comes from the distribution mloc-mirror 1.2"
    for model in ("engine: mirror", "mirror: {}"):
        (found,) = findings(model)
        assert found.startswith("t.yaml:9:")
        assert said in found
    assert compiled("engine: transformers")
    assert "mirror" not in str(template_json_schema())


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("needy", "has an option without a default: much"),
        ("source", "has a name that means something else"),
        ("mirrored", "calls itself 'mirror'"),
        ("options", "expected a mloc_dagster.schema.engine_type.EngineType"),
    ],
)
def test_what_is_no_descriptor_of_its_name_is_refused(plug_in: Path, name: str, said: str) -> None:
    attribute = {"mirrored": "MIRROR", "options": "MirrorOptions"}.get(name, name.upper())
    register(plug_in, **{name: f"mirror_plugin:{attribute}"})
    with pytest.raises(TerminalError, match=said):
        find_engine(name)


def test_a_loader_that_is_missing_is_named_where_a_model_is_loaded(plug_in: Path) -> None:
    register(plug_in, lost="mirror_plugin:LOST")
    with pytest.raises(TerminalError, match=r"'lost' cannot be set up: mirror_plugin\.no:X"):
        choose_engine(spec_of("engine: lost"))
