"""What earlier tasks took, as their summaries have it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from statistics import median

from pydantic import ValidationError

from mloc_dagster.errors import InputError
from mloc_dagster.results.record import read_record
from mloc_dagster.results.store import ResultStore
from mloc_dagster.results.summary import SUMMARY_NAME, TaskSummary

LOOKED_AT = 200
"""Summaries that are read at most."""

AMONG = 10_000
"""Folders whose times are asked for at most."""

ENOUGH = 20
"""Matching tasks; older ones say little about today's machines."""


@dataclass(frozen=True, slots=True)
class Kind:
    """Tasks that are alike as far as their speed goes.

    Attributes:
        model: What answers, as summaries name it.
        revision: Which revision of it, when one is named.
        task_type: What is done.
        engine: The engine's name, where only one will do.
    """

    model: str
    revision: str | None
    task_type: str
    engine: str | None = None


@dataclass(frozen=True, slots=True)
class History:
    """Earlier tasks of one kind, all on the same engine and version of it.

    Attributes:
        summaries: Newest first; empty when there were none.
    """

    summaries: Sequence[TaskSummary] = ()

    @property
    def engine(self) -> str:
        """What computed them, such as `transformers 5.19.0`."""
        return ", ".join(self.summaries[0].engines) if self.summaries else ""

    @property
    def completion_tokens_per_row(self) -> float | None:
        """Tokens that a row's answers had."""
        return _median(
            [each.usage.completion_tokens / each.rows for each in self.summaries if each.rows]
        )

    @property
    def engine_seconds_per_token(self) -> float | None:
        """Engine seconds for a token, read or written; None where no task measured them."""
        return _median(
            [
                each.usage.engine_seconds / tokens
                for each in self.summaries
                if (tokens := _computed_tokens(each)) and each.usage.engine_seconds
            ]
        )

    @property
    def other_seconds(self) -> float | None:
        """Wall seconds in which the engine did nothing: starting, loading, writing results."""
        return _median(
            [
                max(each.usage.latency_sec - each.usage.engine_seconds / _workers(each), 0.0)
                for each in self.summaries
            ]
        )

    @property
    def workers(self) -> int:
        """How many workers the tasks had, most of the time."""
        found = _median([_workers(each) for each in self.summaries])
        return 1 if found is None else max(round(found), 1)


def read_history(
    store: ResultStore,
    kind: Kind,
    *,
    looked_at: int = LOOKED_AT,
    enough: int = ENOUGH,
    among: int = AMONG,
) -> History:
    """Returns the newest tasks of a kind that are on the store.

    Tasks on other engines, or other versions of them, than the newest one's are left out, and so
    are tasks whose rows all failed.

    Args:
        store: Where to look.
        kind: What counts.
        looked_at: Summaries that are read at most.
        enough: Tasks to return at most.
        among: Folders of tasks whose times are looked at, at most.
    """
    found: list[TaskSummary] = []
    for folder in islice(store.newest(SUMMARY_NAME, among), looked_at):
        try:
            summary = TaskSummary.model_validate_json(folder.read_bytes(SUMMARY_NAME))
            if not _is_like(summary, kind) or (found and summary.engines != found[0].engines):
                continue
            if read_record(folder).task_type != kind.task_type:
                continue
        except (FileNotFoundError, ValidationError, InputError):
            continue  # deleted meanwhile, or of another version: it says nothing that can be read
        found.append(summary)
        if len(found) >= enough:
            break
    return History(tuple(found))


def _is_like(summary: TaskSummary, kind: Kind) -> bool:
    return (
        (summary.model, summary.revision) == (kind.model, kind.revision)
        and bool(summary.engines)
        and summary.errors < summary.rows
        and (kind.engine is None or any(each.startswith(kind.engine) for each in summary.engines))
    )


def _computed_tokens(summary: TaskSummary) -> int:
    return summary.usage.total_tokens - summary.usage.reused_tokens


def _workers(summary: TaskSummary) -> float:
    """Returns how many workers were at work at once; a killed and its successor were not."""
    return max(len(summary.workers), 1) if summary.at_once is None else summary.at_once


def _median(values: Sequence[float]) -> float | None:
    return median(values) if values else None
