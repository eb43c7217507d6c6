"""Running templates with a model on the fleet, and what their results say of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from fleet_phases import phases_of
from fleet_stack import FleetStack


@dataclass(frozen=True, slots=True)
class Measured:
    """One run of a template on warm workers.

    Attributes:
        load_s: How long its shards waited for the model.
        shards_s: From the first shard's start to the last one's end.
        wall_s: From leaving the queue to the run's success.
        tokens: Tokens written.
        prompt_tokens: Tokens read.
        cached_tokens: How many of these were in the prefix cache.
        summary: All that the task's summary says.
    """

    load_s: float
    shards_s: float
    wall_s: float
    tokens: int
    prompt_tokens: int
    cached_tokens: int
    summary: Mapping[str, Any]

    @property
    def hit_rate(self) -> float:
        """Share of the prompt tokens that were in the prefix cache."""
        return self.cached_tokens / max(self.prompt_tokens, 1)


def write_template(
    library: Path,
    name: str,
    prompts: Path,
    model: Path,
    *,
    engine: str = "vllm",
    arguments: Mapping[str, Any] | None = None,
    new_tokens: int = 32,
    shards: int = 1,
    **spec: Any,
) -> str:
    """Writes an inference template; returns its name (a word), which is its job's, too."""
    model_block: dict[str, Any] = {
        "source": {"type": "local", "identifier": str(model)},
        "engine": engine,
    }
    if engine == "vllm":
        model_block["vllm"] = dict(arguments or {})
    document = {
        "apiVersion": "mloc/v1",
        "kind": "InferenceTask",
        "metadata": {"name": name},
        "spec": {
            "taskType": "inference",
            "parallel": {"max_shards": shards, **spec.pop("parallel", {})},
            "model": model_block,
            "data": {"type": "dataset", "url": str(prompts), "column": "question"},
            "inference": {"temperature": 0, "max_tokens": new_tokens, "ignore_eos": True},
            "checks": {"max_empty_fraction": 1},  # random weights may write nothing but spaces
            **spec,
        },
    }
    (library / f"{name}.yaml").write_text(yaml.safe_dump(document, sort_keys=False))
    return name


def run_job(stack: FleetStack, results: Path, job: str) -> Measured:
    """Runs a template once and waits for its end.

    Raises:
        SystemExit: If a row has an error.
    """
    run_id = stack.client.create(job)
    submitted = stack.client.submit(run_id)
    stack.client.wait([run_id])
    phases = phases_of(stack.client.instance, run_id, submitted)
    summary = json.loads((results / run_id / "summary.json").read_text())
    if summary["errors"]:
        raise SystemExit(f"{job}: {summary['errors']} rows failed: {summary['first_errors'][:1]}")
    usage = summary["usage"]
    return Measured(
        load_s=sum(each["load_seconds"] for each in shard_reports(results, run_id)),
        shards_s=phases.shards_s,
        wall_s=phases.wall_s - phases.queue_s,
        tokens=usage["completion_tokens"],
        prompt_tokens=usage["prompt_tokens"],
        cached_tokens=usage.get("cached_tokens", 0),
        summary=summary,
    )


def shard_reports(results: Path, run_id: str) -> list[dict[str, Any]]:
    """Returns what the shards of a run reported of themselves."""
    steps = results / ".dagster" / run_id / "steps"
    documents = [json.loads(path.read_text()) for path in steps.rglob("*.json")]
    return [each["value"] for each in documents if each["type"] == "ShardReport"]
