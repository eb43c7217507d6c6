"""The asset checks of a task's result: what they are called, and how a result is judged."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from mloc_dagster.executors import OpenTask
from mloc_dagster.results import (
    BudgetReached,
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
from mloc_dagster.schema import RowSpec, TaskSpec, TrainingSpec


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a check came to.

    Attributes:
        problem: What is wrong, in a sentence; empty when the check passed.
        metadata: What a person wants to see of it.
        warning: What is to be known of a result that is handed on all the same.
    """

    problem: str
    metadata: Mapping[str, str | int | float]
    warning: str = ""

    @property
    def passed(self) -> bool:
        """Whether nothing is wrong."""
        return not (self.problem or self.warning)


@dataclass(frozen=True, eq=False, slots=True)
class Checks:
    """The checks of one kind of result.

    Attributes:
        name: Of the kind.
        texts: What each check says, by its name.
    """

    name: str
    texts: Mapping[str, str]


ROW_CHECKS = Checks(
    "rows",
    {
        "row_count": "There are as many rows as the input had.",
        "indexes_complete": "Every index is there exactly once, in order.",
        "error_budget": "No more rows ended with an error than the template allows.",
        "no_empty_outputs": "Few enough outputs are empty.",
    },
)
SCORED_ROW_CHECKS = Checks(
    "scored_rows",
    {**ROW_CHECKS.texts, "evaluation_gate": "The scores are what `evaluation.gate` asks for."},
)
_BUDGET = {"budget": "The task's budget was enough for all rows. If not, it is a warning."}
_WITH_BUDGET = {
    each: Checks(f"{each.name}_with_budget", {**each.texts, **_BUDGET})
    for each in (ROW_CHECKS, SCORED_ROW_CHECKS)
}
TRAINING_CHECKS = Checks(
    "training",
    {
        "weights": "The final weights are there, unless the template keeps none.",
        "gate": "The model is worth what `evaluation.gate` asks for; without a gate, always.",
    },
)


def checks_of(spec: TaskSpec) -> Checks:
    """Returns the checks of a task's result."""
    if isinstance(spec, TrainingSpec):
        return TRAINING_CHECKS
    found = SCORED_ROW_CHECKS if _scored(spec) else ROW_CHECKS
    return _WITH_BUDGET[found] if _limited(spec) else found


def judge(opened: OpenTask, *, again: str = "") -> dict[str, Verdict]:
    """Judges the result of a task.

    Args:
        opened: The task; all that it computes is there.
        again: The command that computes rows with an error again.

    Returns:
        What each check of `checks_of` came to.
    """
    folder, spec = opened.folder, opened.task.spec
    if isinstance(spec, TrainingSpec):
        summary = read_training(folder)
        there = bool(summary.final) and folder.exists(summary.final)
        return judge_training(summary, kept=there or not spec.training.save_model)
    # A pass of its own: whoever counted while aggregating is not asked.
    counts = count_rows(read_rows(folder))
    verdicts = judge_rows(counts, opened.plan().rows, opened.spec, again=again)
    if _scored(spec):
        verdicts |= judge_scores(read_summary(folder).scores)
    return verdicts | (judge_budget(read_summary(folder).budget) if _limited(spec) else {})


def judge_budget(reached: BudgetReached | None) -> dict[str, Verdict]:
    """Says whether a task ended for its budget: it was told to, so that is no failure."""
    if reached is None:
        return {"budget": Verdict("", {})}
    figures = reached.model_dump(include={"spent", "limit", "computed", "rows"})
    return {"budget": Verdict("", figures, warning=str(reached))}


def _limited(spec: TaskSpec) -> bool:
    return isinstance(spec, RowSpec) and bool(spec.budget.given)


def _scored(spec: TaskSpec) -> bool:
    return getattr(spec, "evaluation", None) is not None


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
    budget = allowed_errors(planned, spec.error_budget, counts.excused)
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
