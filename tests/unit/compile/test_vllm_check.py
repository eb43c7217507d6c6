from __future__ import annotations

import pytest

from mloc_dagster.compile.compiler import compile_document
from mloc_dagster.compile.loader import parse_documents
from mloc_dagster.errors import TemplateError
from mloc_dagster.executors import argument_names
from mloc_dagster.executors.engines.vllm import engine_type
from mloc_dagster.schema import class_fields

TEMPLATE = """\
apiVersion: mloc/v1
kind: InferenceTask
metadata: {name: t}
spec:
  taskType: inference
  data: {type: list, items: [a]}
  model:
    source: {identifier: x}
    vllm:
      gpu_memory_utilization: 0.5
      %s: 2
"""


def refused(name: str) -> str:
    with pytest.raises(TemplateError) as caught:
        compile_document(parse_documents(TEMPLATE % name, "t.yaml")[0])
    (finding,) = caught.value.diagnostics
    return str(finding)


def knows(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    monkeypatch.setattr(engine_type, "argument_names", lambda: frozenset(names))


def test_an_unknown_argument_is_an_error_at_its_line_with_the_nearest_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    knows(monkeypatch, "gpu_memory_utilization", "max_num_seqs")

    assert refused("max_num_seq") == (
        "t.yaml:11:7: spec.model.vllm.max_num_seq: vLLM has no engine argument 'max_num_seq'; "
        "did you mean 'max_num_seqs'?"
    )


def test_without_vllm_no_argument_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    knows(monkeypatch)

    assert compile_document(parse_documents(TEMPLATE % "max_num_seq", "t.yaml")[0])


def test_what_stands_in_model_source_is_not_said_twice() -> None:
    assert "the model is named in model.source" in refused("model")


def test_names_are_the_public_fields_of_the_class() -> None:
    source = """
class Other:
    no: int = 1

class EngineArgs:
    model: str = "x"
    seed: int = 0
    shared: ClassVar[int] = 3
    _own: int = 1
    alias = 4
"""

    assert class_fields(source, "EngineArgs") == {"model": "str", "seed": "int"}
    assert class_fields("", "EngineArgs") == {}


def test_the_installed_vllm_is_read_without_importing_it() -> None:
    names = argument_names()
    if not names:
        pytest.skip("vLLM is not installed")

    assert {"tensor_parallel_size", "max_num_seqs", "enable_lora"} <= names
