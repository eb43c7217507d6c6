"""The asset checks between a task's result and whatever reads it."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import dagster as dg

from mloc_dagster.assets.task_graph import asset_key, node_name
from mloc_dagster.compile import CompiledTask, CompiledTemplate
from mloc_dagster.executors import open_task
from mloc_dagster.ops import PROCESS_TAG, TaskRef
from mloc_dagster.results import (
    RowCounts,
    Scores,
    TrainingSummary,
    allowed_errors,
    budget_problem,
    count_rows,
    read_rows,
    read_summary,
    read_training,
    refused_by_gate,
)
from mloc_dagster.schema import RowSpec


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a check came to.

    Attributes:
        problem: What is wrong, in a sentence; empty when the check passed.
        metadata: What a person wants to see of it.
    """

    problem: str
    metadata: Mapping[str, str | int | float]

    @property
    def passed(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problem


def check_results(
    key: dg.AssetKey, verdicts: Mapping[str, Verdict]
) -> Iterator[dg.AssetCheckResult]:
    """Yields the results of blocking checks; then, if one failed, ends their step in words.

    Dagster's own error says only how the checks are called, and it is what reaches everybody who
    reads why a task failed.

    Args:
        key: The asset that was checked.
        verdicts: What each check came to, by name.

    Raises:
        dg.Failure: With the problems, if there are any.
    """
    for name, verdict in verdicts.items():
        yield dg.AssetCheckResult(
            check_name=name, asset_key=key, passed=verdict.passed, metadata=verdict.metadata
        )
    problems = [each.problem for each in verdicts.values() if not each.passed]
    if problems:
        raise dg.Failure(description="; ".join(problems), allow_retries=False)


ROW_CHECKS = {
    "row_count": "There are as many rows as the input had.",
    "indexes_complete": "Every index is there exactly once, in order.",
    "error_budget": "No more rows ended with an error than the template allows.",
    "no_empty_outputs": "Few enough outputs are empty.",
}
SCORE_CHECKS = {"evaluation_gate": "The scores are what `evaluation.gate` asks for."}


def row_checks(compiled: CompiledTemplate, node: CompiledTask) -> dg.AssetChecksDefinition:
    """Builds the blocking checks of a task's responses; one step counts for all of them."""
    key = asset_key(compiled, node.task.name, "responses")
    gated = getattr(node.task.spec, "evaluation", None) is not None
    specs = [
        dg.AssetCheckSpec(name, asset=key, description=text, blocking=True)
        for name, text in (ROW_CHECKS | (SCORE_CHECKS if gated else {})).items()
    ]

    @dg.multi_asset_check(
        name=f"{node_name(compiled, node.task.name)}__checks",
        specs=specs,
        ins={"responses": dg.AssetIn(key=key)},
    )
    def checks(
        context: dg.AssetCheckExecutionContext, responses: TaskRef
    ) -> Iterator[dg.AssetCheckResult]:
        opened = open_task(responses.task_id)
        counts = count_rows(read_rows(opened.folder))
        # `mloc run` says itself how to go on.
        here = PROCESS_TAG in context.run.tags
        again = "" if here else f"mloc retry --failed-rows {responses.task_id}"
        verdicts = judge_rows(counts, opened.plan().rows, opened.spec, again=again)
        if gated:
            verdicts |= judge_scores(read_summary(opened.folder).scores)
        yield from check_results(key, verdicts)

    return checks


def judge_rows(
    counts: RowCounts, planned: int, spec: RowSpec, *, again: str = ""
) -> dict[str, Verdict]:
    """Judges what a pass over the rows found.

    Args:
        counts: What was found.
        planned: Rows of the input.
        spec: The task, for its limits.
        again: The command that computes rows with an error again.

    Returns:
        What each check of `ROW_CHECKS` came to.
    """
    budget = allowed_errors(planned, spec.error_budget, counts.upstream)
    allowed_empty = spec.checks.max_empty_fraction * planned
    errors: dict[str, str | int | float] = {"errors": counts.errors, "allowed": budget}
    if counts.first_error is not None:
        index, text = counts.first_error
        errors["first_error"] = f"row {index}: {text}"
    gap = -1 if counts.first_gap is None else counts.first_gap
    over = budget_problem(counts.errors, planned, budget, counts.first_error, again=again)
    share = spec.checks.max_empty_fraction
    empty = (
        f"{counts.empty:,} of {planned:,} outputs are empty, and checks.max_empty_fraction"
        f" {share:g} allows {math.floor(allowed_empty):,}"
    )
    return {
        "row_count": Verdict(
            f"there are {counts.rows:,} rows of {planned:,}" * (counts.rows != planned),
            {"rows": counts.rows, "planned": planned},
        ),
        "indexes_complete": Verdict(
            f"row {gap} is missing, or out of order" * (counts.first_gap is not None),
            {"first_gap": gap},
        ),
        "error_budget": Verdict(over * (counts.errors > budget), errors),
        "no_empty_outputs": Verdict(
            empty * (counts.empty > allowed_empty),
            {"empty": counts.empty, "allowed": allowed_empty},
        ),
    }


def judge_scores(scores: Scores | None) -> dict[str, Verdict]:
    """Judges what an evaluation came to."""
    if scores is None:
        return {"evaluation_gate": Verdict("the rows were not scored", {})}
    shown: dict[str, str | int | float] = {"gate": scores.gate or "none", **scores.metrics}
    return {"evaluation_gate": Verdict("" if scores.passed else refused_by_gate(scores), shown)}


TRAINING_CHECKS = {
    "weights": "The final weights are there, unless the template keeps none.",
    "gate": "The model is worth what `evaluation.gate` asks for; without a gate, always.",
}


def training_checks(compiled: CompiledTemplate, node: CompiledTask) -> dg.AssetChecksDefinition:
    """Builds the blocking checks of a training: a worse model is not handed on."""
    key = asset_key(compiled, node.task.name, "checkpoint")
    specs = [
        dg.AssetCheckSpec(name, asset=key, description=text, blocking=True)
        for name, text in TRAINING_CHECKS.items()
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
        yield from check_results(key, judge_training(summary, kept=kept))

    return checks


def judge_training(summary: TrainingSummary, *, kept: bool) -> dict[str, Verdict]:
    """Judges a training.

    Args:
        summary: What it left.
        kept: Whether the weights that the template keeps are there.

    Returns:
        What each check of `TRAINING_CHECKS` came to.
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
