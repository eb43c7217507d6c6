"""The checks that stand between a training's weights and whatever goes on with them."""

from collections.abc import Iterator

import dagster as dg

from mloc_dagster.assets.names import asset_key, node_name
from mloc_dagster.compile.compiler import CompiledTask, CompiledTemplate
from mloc_dagster.executors.open_task import open_task
from mloc_dagster.ops.failures import failed_checks
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
        problems: list[str] = []
        for name, (problem, metadata) in evaluate(summary, kept=kept).items():
            yield dg.AssetCheckResult(
                check_name=name, asset_key=key, passed=not problem, metadata=metadata
            )
            problems += [problem] if problem else []
        if problems:
            raise failed_checks(problems)

    return checks


def evaluate(
    summary: TrainingSummary, *, kept: bool
) -> dict[str, tuple[str, dict[str, str | float]]]:
    """Judges a training.

    Args:
        summary: What it left.
        kept: Whether the weights that the template keeps are there.

    Returns:
        For each check of `CHECKS` what is wrong (empty when it passed), and what a person wants
        to see.
    """
    shown: dict[str, str | float] = {"gate": summary.gate or "none"}
    shown |= {f"before/{name}": value for name, value in (summary.before or {}).items()}
    shown |= {f"after/{name}": value for name, value in (summary.after or {}).items()}
    return {
        "weights": (
            "the final weights are not there" * (not kept),
            {"folder": summary.final or "none"},
        ),
        "gate": (
            f"the model did not pass its gate: {summary.gate}" * (not summary.passed),
            shown,
        ),
    }
