"""The checks that stand between a task's responses and whatever reads them."""

from collections.abc import Iterator

import dagster as dg

from mloc_dagster.assets.names import asset_key, node_name
from mloc_dagster.compile.compiler import CompiledTask, CompiledTemplate
from mloc_dagster.executors.open_task import open_task
from mloc_dagster.executors.task_start import error_budget_of
from mloc_dagster.ops.references import TaskRef
from mloc_dagster.results.budget import allowed_errors
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
    def checks(responses: TaskRef) -> Iterator[dg.AssetCheckResult]:
        opened = open_task(responses.task_id)
        counts = count_rows(read_rows(opened.folder))
        for name, (passed, metadata) in evaluate(counts, opened.plan().rows, opened.spec).items():
            yield dg.AssetCheckResult(
                check_name=name, asset_key=key, passed=passed, metadata=metadata
            )

    return checks


def evaluate(
    counts: RowCounts, planned: int, spec: RowSpec
) -> dict[str, tuple[bool, dict[str, str | int | float]]]:
    """Judges what a pass over the rows found.

    Args:
        counts: What was found.
        planned: Rows of the input.
        spec: The task, for its limits.

    Returns:
        For each check of `CHECKS` whether it passed, and what a person wants to see.
    """
    budget = allowed_errors(planned, error_budget_of(spec))
    allowed_empty = spec.checks.max_empty_fraction * planned
    errors: dict[str, str | int | float] = {"errors": counts.errors, "allowed": budget}
    if counts.first_error is not None:
        index, text = counts.first_error
        errors["first_error"] = f"row {index}: {text}"
    gap = -1 if counts.first_gap is None else counts.first_gap
    return {
        "row_count": (counts.rows == planned, {"rows": counts.rows, "planned": planned}),
        "indexes_complete": (counts.first_gap is None, {"first_gap": gap}),
        "error_budget": (counts.errors <= budget, errors),
        "no_empty_outputs": (
            counts.empty <= allowed_empty,
            {"empty": counts.empty, "allowed": allowed_empty},
        ),
    }
