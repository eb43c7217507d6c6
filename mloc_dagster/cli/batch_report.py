"""What `mloc batch` says at the end."""

from __future__ import annotations

from dataclasses import dataclass

import typer
from rich.console import Console

from mloc_dagster.cli.tables import print_table
from mloc_dagster.cli.wording import duration, rate
from mloc_dagster.results.summary import TaskSummary


@dataclass(frozen=True, slots=True)
class BatchOutcome:
    """A batch whose files are written.

    Attributes:
        summary: Its task's figures.
        folder: Address of the task's results.
        output: The file with the answers.
        errors: The file with the requests that failed.
        answered: Requests with an answer.
        failed: Requests without one.
    """

    summary: TaskSummary
    folder: str
    output: str
    errors: str
    answered: int
    failed: int


def batch_json(outcome: BatchOutcome | None) -> dict[str, object] | None:
    """Returns what `--json` adds to the report; None when no file was written."""
    if outcome is None:
        return None
    return {
        "output": outcome.output,
        "errors": outcome.errors,
        "answered": outcome.answered,
        "failed": outcome.failed,
        "usage": outcome.summary.usage.model_dump(mode="json"),
    }


def print_batch(outcome: BatchOutcome) -> None:
    """Prints the usage report, and the files' paths last."""
    out = Console()
    out.print()
    print_table(("batch", ""), _lines(outcome), numbers=(1,), console=out)
    if outcome.failed:
        first = outcome.summary.first_errors[0]
        named = f"row {first.index}" if first.custom_id is None else first.custom_id
        out.print(
            f"{outcome.failed:,} requests failed; the first, {named}: {first.error}",
            markup=False,
            soft_wrap=True,
        )
    out.print()
    typer.echo(outcome.errors)
    typer.echo(outcome.output)


def _lines(outcome: BatchOutcome) -> list[tuple[str, str]]:
    summary, usage = outcome.summary, outcome.summary.usage
    reused = usage.reused_rows.task + usage.reused_rows.cache
    lines = [
        ("requests", f"{outcome.answered + outcome.failed:,}"),
        ("rows", f"{summary.rows:,}"),
        ("errors", f"{summary.errors:,}"),
        ("prompt tokens", f"{usage.prompt_tokens:,}"),
        ("  of these cached", f"{usage.cached_tokens:,}"),
        ("output tokens", f"{usage.completion_tokens:,}"),
        ("rows reused", f"{reused:,}"),
        ("time", duration(usage.latency_sec)),
        ("engine time", duration(usage.engine_seconds)),
        *([("GPU time", duration(usage.gpu_seconds))] if usage.gpu_seconds else []),
        ("output tokens/s", rate(summary.tokens_per_s)),
        ("rows/s", rate(summary.rows_per_s)),
    ]
    if usage.energy_joules is not None:
        lines.append(("energy", f"{usage.energy_joules:,.0f} J"))
    if usage.cost is not None:
        lines.append(("cost", f"{usage.cost:.6f}"))
    return lines
