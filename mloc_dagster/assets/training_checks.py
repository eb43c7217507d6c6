"""The checks that stand between a training's weights and whatever goes on with them."""

from collections.abc import Iterator

import dagster as dg

from mloc_dagster.assets.names import asset_key, node_name
from mloc_dagster.assets.verdict import Verdict, check_results
from mloc_dagster.compile.compiler import CompiledTask, CompiledTemplate
from mloc_dagster.executors.open_task import open_task
from mloc_dagster.ops.references import TaskRef
from mloc_dagster.results.training_summary import TrainingSummary, read_training

CHECKS = {
    "weights": "The final weights are there, unless the template keeps none.",
    "gate": "The model is worth what `evaluation.gate` asks for; without a gate, always.",
}


def training_checks(compiled: CompiledTemplate, node: CompiledTask) -> dg.AssetChecksDefinition:
    """Builds the blocking checks of a training: a worse model is not handed on."""
    key = asset_key(compiled, node.task.name, "checkpoint")
    specs = [
        dg.AssetCheckSpec(name, asset=key, description=text, blocking=True)
        for name, text in CHECKS.items()
    ]

    @dg.multi_asset_check(
        name=f"{node_name(compiled, node.task.name)}__checks",
        specs=specs,
        ins={"checkpoint": dg.AssetIn(key=key)},
    )
    def checks(checkpoint: TaskRef) -> Iterator[dg.AssetCheckResult]:
        opened = open_task(checkpoint.task_id)
        summary = read_training(opened.folder)
        there = bool(summary.final) and opened.folder.exists(summary.final)
        kept = there or not opened.training_spec.training.save_model
        yield from check_results(key, evaluate(summary, kept=kept))

    return checks


def evaluate(summary: TrainingSummary, *, kept: bool) -> dict[str, Verdict]:
    """Judges a training.

    Args:
        summary: What it left.
        kept: Whether the weights that the template keeps are there.

    Returns:
        What each check of `CHECKS` came to.
    """
    shown: dict[str, str | float] = {"gate": summary.gate or "none"}
    shown |= {f"before/{name}": value for name, value in (summary.before or {}).items()}
    shown |= {f"after/{name}": value for name, value in (summary.after or {}).items()}
    lacking = "" if kept else "the final weights are not there"
    refused = "" if summary.passed else f"the model did not pass its gate: {summary.gate}"
    return {
        "weights": Verdict(lacking, {"folder": summary.final or "none"}),
        "gate": Verdict(refused, shown),
    }
