"""What the agents of a shard have done so far, for those who watch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from mloc_dagster.results import CallBegun, CallResult, ModelTurn, Steps

TURNS = "turns"
TOOL_CALLS = "tool_calls"
FAILED_CALLS = "failed_calls"
COUNTS = (TURNS, TOOL_CALLS, FAILED_CALLS)


class Counts:
    """Counts turns and calls, those of earlier attempts included.

    Args:
        tell: Takes the figures whenever they have changed.
        known: What earlier attempts have done.
    """

    def __init__(self, tell: Callable[[Mapping[str, int]], None], known: Iterable[Steps]) -> None:
        self._tell = tell
        self._counts: dict[str, int] = dict.fromkeys(COUNTS, 0)
        for steps in (each for row in known for each in row.with_workers()):
            for entry in (*steps.turns.values(), *steps.results.values()):
                self._count(entry)
        if any(self._counts.values()):
            self._tell(dict(self._counts))

    def add(self, entry: ModelTurn | CallBegun | CallResult) -> None:
        """Counts what was just done."""
        if self._count(entry):
            self._tell(dict(self._counts))

    def _count(self, entry: ModelTurn | CallBegun | CallResult) -> bool:
        match entry:
            case ModelTurn():
                self._counts[TURNS] += 1
                self._counts[TOOL_CALLS] += len(entry.tool_calls)
                return True
            case CallResult(failed=True):
                self._counts[FAILED_CALLS] += 1
                return True
            case _:
                return False
