"""Nothing in the event log is skipped or read twice, in whatever order it becomes visible."""

from __future__ import annotations

from hypothesis import given, strategies as st

from mloc_dagster.sensors.events import PATIENCE_S, LogCursor


def visible(log: set[int], cursor: LogCursor) -> list[int]:
    """What the two queries of a tick return."""
    late = {each for first, last in cursor.ranges() for each in log if first <= each <= last}
    return sorted(late | {each for each in log if each > cursor.after})


@given(st.permutations(range(1, 30)), st.lists(st.integers(1, 6), min_size=1, max_size=30))
def test_each_entry_is_read_once(order: list[int], commits: list[int]) -> None:
    cursor, log, read = LogCursor(after=0), set[int](), list[int]()
    waiting, now = list(order), 0.0
    sizes = iter(commits)
    while waiting:
        for _ in range(next(sizes, 5)):
            if waiting:
                log.add(waiting.pop())
        found = visible(log, cursor)
        read += found
        cursor = LogCursor.model_validate_json(cursor.advanced(found, now).model_dump_json())
        now += 1
    assert sorted(read) == list(range(1, 30))
    assert cursor == LogCursor(after=29)


def test_ids_that_never_come_are_given_up() -> None:
    cursor = LogCursor(after=0).advanced([1, 5], now=0)
    assert cursor.ranges() == [(2, 4)]
    cursor = cursor.advanced([3], now=1)
    assert cursor.ranges() == [(2, 2), (4, 4)]
    assert cursor.advanced([], now=PATIENCE_S).ranges() == []
    assert cursor.after == 5
