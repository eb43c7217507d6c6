"""Which tasks are small enough to share a run, and with whom."""

from __future__ import annotations

from typing import Any

import pytest

from mloc_dagster.compile import compile_mapping
from mloc_dagster.dispatch.batching import MOST_ROWS, batch_key


def key(name: str = "one", *, kind: str = "EchoTask", items: int = 2, **spec: Any) -> str | None:
    rows = [f"row {n}" for n in range(items)]
    return batch_key(
        compile_mapping(
            {
                "apiVersion": "mloc/v1",
                "kind": kind,
                "metadata": {"name": name},
                "spec": {"data": {"type": "list", "items": rows}, **spec},
            }
        )
    )


def test_what_is_each_tasks_own_makes_no_difference() -> None:
    assert key() is not None
    assert key() == key("two", items=5)
    assert key() == key(slo={"seconds": 3}, output={"formats": ["jsonl"]}, retries={"max": 1})


def test_what_is_computed_otherwise_has_another_key() -> None:
    assert key() != key(echo={"delay_s": 0.5})
    assert key() != key(resources={"hardware": {"cpu": "2"}})


def test_models_are_compared_with_their_sampling() -> None:
    model = {"source": {"type": "builtin", "identifier": "tiny-chat"}}

    def of(**inference: Any) -> str | None:
        return key(kind="InferenceTask", taskType="inference", model=model, inference=inference)

    assert of(temperature=0) is not None
    assert of(temperature=0) == of(temperature=0.0)
    assert of(temperature=0) != of(temperature=1)
    assert of(seed=3) is None

    def form(*names: str) -> dict[str, Any]:
        return {"json": {"properties": {name: {"type": "string"} for name in names}}}

    assert of(structured_outputs=form("a", "b")) != of(structured_outputs=form("b", "a"))


@pytest.mark.parametrize(
    "spec",
    [
        {"items": MOST_ROWS + 1},
        {"echo": {"fail_rate": 0.5}},
        {"budget": {"tokens": 9}},
        {"evaluation": {"metrics": ["json_valid"], "report_to": "mlflow"}},
        {"echo": {"poison": [0]}},
        {"output": {"destination": {"type": "http", "url": "http://example.com/"}}},
        {"schedule": {"cron": "0 * * * *"}},
        {"resources": {"pool": "few"}},
    ],
)
def test_what_others_would_suffer_from_has_a_run_of_its_own(spec: dict[str, Any]) -> None:
    assert key(**spec) is None


def test_several_tasks_have_a_run_of_their_own() -> None:
    data = {"type": "list", "items": ["x"]}
    stages = [{"name": name, "spec": {"taskType": "echo", "data": data}} for name in "ab"]
    document: dict[str, Any] = {
        "apiVersion": "mloc/v1",
        "kind": "EchoTask",
        "metadata": {"name": "staged"},
        "spec": {"stages": stages},
    }
    assert batch_key(compile_mapping(document)) is None
