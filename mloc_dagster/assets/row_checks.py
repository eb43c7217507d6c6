"""The checks that stand between a task's responses and whatever reads them."""

import math
from collections.abc import Iterator

import dagster as dg

from mloc_dagster.assets.names import asset_key, node_name
from mloc_dagster.assets.verdict import Verdict, check_results
from mloc_dagster.compile.compiler import CompiledTask, CompiledTemplate
from mloc_dagster.executors.open_task import open_task
from mloc_dagster.ops.references import TaskRef
from mloc_dagster.ops.run_tags import PROCESS_TAG
from mloc_dagster.results.budget import allowed_errors, budget_problem
from mloc_dagster.results.shard_files import read_rows
from mloc_dagster.results.verification import RowCounts, count_rows
from mloc_dagster.schema.task import RowSpec

CHECKS = {
    "row_count": "There are as many rows as the input had.",
    "indexes_complete": "Every index is there exactly once, in order.",
    "error_budget": "No more rows ended with an error than the template allows.",
    "no_empty_outputs": "Few enough outputs are empty.",
}


def row_checks(compiled: CompiledTemplate, node: CompiledTask) -> dg.AssetChecksDefinition:
    """Builds the blocking checks of a task's responses; one step counts for all of them."""
    key = asset_key(compiled, node.task.name, "responses")
    specs = [
        dg.AssetCheckSpec(name, asset=key, description=text, blocking=True)
        for name, text in CHECKS.items()
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
        verdicts = evaluate(counts, opened.plan().rows, opened.spec, again=again)
        yield from check_results(key, verdicts)

    return checks


def evaluate(
    counts: RowCounts, planned: int, spec: RowSpec, *, again: str = ""
) -> dict[str, Verdict]:
    """Judges what a pass over the rows found.

    Args:
        counts: What was found.
        planned: Rows of the input.
        spec: The task, for its limits.
        again: The command that computes rows with an error again.

    Returns:
        What each check of `CHECKS` came to.
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
