"""Templates whose model is an endpoint's: what they need, and what goes with it."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import yaml

from mloc_dagster.compile import compile_text
from mloc_dagster.dispatch import batch_key
from mloc_dagster.schema import certain_engine

ASKED: dict[str, Any] = {
    "apiVersion": "mloc/v1",
    "kind": "InferenceTask",
    "metadata": {"name": "asked"},
    "spec": {
        "taskType": "inference",
        "model": {
            "source": {
                "type": "openai",
                "identifier": "parrot",
                "base_url": "https://api.example.org/v1",
                "api_key": "${ENV:KEY}",
            }
        },
        "data": {"type": "list", "items": ["hi"]},
    },
}


def document(source: dict[str, Any] | None = None, **model: Any) -> str:
    spec = {**ASKED["spec"]}
    base = {**spec["model"]["source"], **(source or {})}
    kept = {name: value for name, value in base.items() if value is not None}
    spec["model"] = {"source": kept, **model}
    return yaml.safe_dump({**ASKED, "spec": spec})


def findings(text: str) -> list[str]:
    return [each.message for each in compile_text(text, "t.yaml")[1]]


def test_the_engine_follows_from_the_source() -> None:
    templates, found = compile_text(document(openai={"max_concurrency": 4}), "t.yaml")
    assert found == []
    spec: Any = templates[0].tasks[0].task.spec
    engine = certain_engine(spec)
    assert engine is not None
    assert engine.name == "openai"
    assert findings(document(engine="openai")) == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (document({"base_url": None}), "needs base_url"),
        (document({"base_url": "api.example.org"}), "expected an http:// or https:// URL"),
        (document({"base_url": "https://me:pw@api.example.org/v1"}), "credentials in it"),
        (document({"type": "huggingface"}), "has no base_url"),
        (document({"type": "builtin", "identifier": "tiny-chat", "base_url": None}), "no api_key"),
        (document(engine="vllm"), "vLLM takes no model of type openai"),
        (
            document({"type": "huggingface", "base_url": None, "api_key": None}, engine="openai"),
            "an OpenAI endpoint takes no model of type huggingface",
        ),
        (document(openai={"extra_body": {"model": "x"}}), "'model' is set by mloc"),
        (document(adapters=[{"path": "/x"}]), "takes no adapters"),
        (document(openai={"max_concurency": 4}), "max_concurrency"),
        (document({"trust_remote_code": True}), "runs no code here"),
    ],
)
def test_what_does_not_fit_is_said(text: str, said: str) -> None:
    assert any(said in each for each in findings(text)), findings(text)


def test_options_of_engines_that_do_not_run_are_a_warning() -> None:
    (said,) = findings(document(vllm={"max_model_len": 5}))
    assert "this task runs on an OpenAI endpoint" in said


def test_gpus_are_refused() -> None:
    spec = yaml.safe_load(document())
    spec["spec"]["resources"] = {"hardware": {"gpu": {"count": 1}}}
    (said,) = findings(yaml.safe_dump(spec))
    assert "an endpoint computes elsewhere" in said


def test_an_endpoint_is_not_trained() -> None:
    training = {
        **ASKED,
        "kind": "SFTTask",
        "spec": {
            "taskType": "sft",
            "model": ASKED["spec"]["model"],
            "data": {"rows": [{"prompt": "a", "completion": "b"}]},
            "training": {"max_steps": 1},
        },
    }
    assert any("no weights" in each for each in findings(yaml.safe_dump(training)))


def test_tasks_with_keys_are_not_computed_together() -> None:
    def key(**source: Any) -> str | None:
        return batch_key(compile_text(document(source), "t.yaml")[0][0])

    assert key(api_key="sk-one") is None
    assert key(api_key=None) == key(api_key=None) is not None


def test_compiling_needs_neither_the_package_nor_torch() -> None:
    code = (
        "import sys\n"
        "from mloc_dagster.compile import compile_text\n"
        f"assert not compile_text({document()!r}, 't.yaml')[1]\n"
        "assert not {'openai', 'httpx2', 'aiolimiter', 'torch'} & sys.modules.keys()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
