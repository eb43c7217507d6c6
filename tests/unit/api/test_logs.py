"""Lines of a run and of its shards' log files, put in order of time."""

from __future__ import annotations

from datetime import UTC, datetime

from mloc_dagster.api.logs import Place, Read, Source, in_order
from mloc_dagster.wire import LogLine


def source(name: str, *seconds: int, more: bool = False) -> Source:
    entries = [
        Read(
            datetime.fromtimestamp(second, UTC),
            mark,
            LogLine(source=name or "run", text=f"{name}{second}"),
        )
        for mark, second in enumerate(seconds, 1)
    ]
    return Source(name, entries, more)


def read(*sources: Source, start: Place | None = None) -> tuple[list[str], Place]:
    lines, stop = in_order(sources, start or Place())
    return [each.text for each in lines], stop


def test_sources_are_merged_by_time_whatever_their_own_order() -> None:
    texts, stop = read(source("", 1, 5, 3), source("a", 2, 6), source("b", 4))
    assert texts == ["1", "a2", "3", "b4", "5", "a6"]
    assert stop == Place(event=3, files={"a": 2, "b": 1})


def test_what_may_come_behind_a_source_that_goes_on_waits_for_it() -> None:
    texts, stop = read(source("", 1, 3, more=True), source("a", 2, 6, 7))
    assert texts == ["1", "a2", "3"]
    assert stop == Place(event=2, files={"a": 1})


def test_a_source_that_goes_on_is_always_read_on() -> None:
    texts, stop = read(source("", 9, 1, 2, more=True), source("a", 1, 1, more=True))
    assert (texts, stop) == (["a1", "a1"], Place(files={"a": 2}))


def test_without_anything_new_nothing_moves() -> None:
    start = Place(event=7, files={"a": 3})
    assert read(source(""), source("a"), start=start) == ([], start)
