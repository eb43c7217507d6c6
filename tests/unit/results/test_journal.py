"""What a journal says of a row after some attempts, one of which may live on as a ghost."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from mloc_dagster.errors import DamagedFileError, TransientError
from mloc_dagster.planning import Shard
from mloc_dagster.results.journal import (
    CallBegun,
    CallResult,
    Entry,
    Journal,
    ModelTurn,
    Steps,
    journal_steps,
)
from mloc_dagster.results.rows import FunctionCall, ToolCall
from mloc_dagster.results.store import Folder, open_store

SHARD = Shard(task_id="t", index=0, total=1, start=0, stop=100)


@pytest.fixture
def folder() -> Folder:
    return open_store(f"memory://{uuid.uuid4().hex}").task("t")


def write(folder: Folder, attempt: int, *entries: Entry, most: int = 100) -> None:
    with Journal(folder, SHARD, attempt, most=most, interval_s=60) as journal:
        for each in entries:
            journal.add(each)


@contextmanager
def ghost(folder: Folder, *entries: Entry) -> Iterator[Journal]:
    """An attempt that has noted something, and lives on."""
    with Journal(folder, SHARD, 1, most=1, interval_s=60) as journal:
        for each in entries:
            journal.add(each)
        yield journal


def turn(number: int, text: str = "", index: int = 0) -> ModelTurn:
    return ModelTurn(index, number, text)


def result(number: int, output: str, call: str = "c") -> CallResult:
    return CallResult(0, number, call, "tool", output)


def steps(folder: Folder) -> Steps:
    return journal_steps(folder, SHARD).get(0, Steps())


def texts(found: Steps) -> list[str]:
    return [found.turns[number].text for number in sorted(found.turns)]


def test_entries_come_back_as_they_went_in(folder: Folder) -> None:
    call = ToolCall("c", FunctionCall("tool", '{"a": 1}'))
    said = ModelTurn(0, 0, "hé", "I think", [call], "tool_calls", 3, 4, 1, 2, 0.5, 0.75, 1.0, 9.0)
    answered = CallResult(0, 0, "c", "tool", "5", failed=True, seconds=0.1, row_s=2.5)
    write(folder, 1, said, CallBegun(0, 0, "c", "tool"), answered)

    found = steps(folder)

    assert found.turns == {0: said}
    assert found.results == {(0, "c"): answered}
    assert list(found.begun) == [(0, "c")]
    assert found.seconds == 2.5


def test_a_shard_without_entries_has_no_journal(folder: Folder) -> None:
    write(folder, 1)
    assert folder.list("journal", recursive=True) == []
    assert journal_steps(folder, SHARD) == {}


def test_what_has_to_be_there_is_there_at_once(folder: Folder) -> None:
    with Journal(folder, SHARD, 1, most=100, interval_s=60) as journal:
        journal.add(turn(0, "a"))
        assert journal_steps(folder, SHARD) == {}
        journal.add(CallBegun(0, 0, "c", "tool"), now=True)
        found = steps(folder)
    # With all that led to it: the next attempt must not ask the model for another call.
    assert texts(found) == ["a"]
    assert list(found.begun) == [(0, "c")]


def test_a_later_attempt_goes_on_where_the_earlier_one_ended(folder: Folder) -> None:
    write(folder, 1, turn(0, "a"), result(0, "5"), turn(1, "b"))
    write(folder, 2, turn(2, "c"))
    assert texts(steps(folder)) == ["a", "b", "c"]


def test_a_ghosts_steps_do_not_count_where_another_attempt_has_gone_on(folder: Folder) -> None:
    with ghost(folder, turn(0, "a"), result(0, "5")) as first:
        write(folder, 2, turn(1, "b"), turn(2, "c"))
        # The first attempt lives on, and its model says something else in turn 1.
        for each in (turn(1, "ghost"), turn(2, "ghost"), turn(3, "ghost"), result(2, "ghost")):
            first.add(each)

    found = steps(folder)

    assert texts(found) == ["a", "b", "c"]
    assert list(found.results) == [(0, "c")]


def test_a_call_that_the_ghost_still_made_counts_where_the_other_has_not(folder: Folder) -> None:
    with ghost(folder, turn(0, "a"), result(0, "one", "c1")) as first:
        write(folder, 2, result(0, "two", "c2"))
        first.add(result(0, "ghost", "c2"))
        first.add(result(0, "three", "c3"))

    found = steps(folder).results

    assert {call: each.output for (_, call), each in found.items()} == {
        "c1": "one", "c2": "two", "c3": "three"
    }  # fmt: skip


def test_of_two_attempts_that_both_live_one_makes_a_call(folder: Folder) -> None:
    call = CallBegun(0, 0, "c", "tool")
    with ghost(folder) as first, ghost(folder) as second:
        first.take_over()
        first.begin(CallBegun(0, 0, "b", "tool"))
        # Which of them is later is told by the journal: a run that goes on counts from 1 again.
        assert list(second.take_over()[0].begun) == [(0, "b")]
        with pytest.raises(TransientError, match="another attempt works on shard 0000"):
            first.begin(call)
        second.begin(call)


def test_rows_do_not_mix(folder: Folder) -> None:
    write(folder, 1, turn(0, "a"), turn(0, "z", index=7), turn(1, "y", index=7))
    write(folder, 2, turn(1, "b"))
    found = journal_steps(folder, SHARD)
    assert texts(found[0]) == ["a", "b"]
    assert texts(found[7]) == ["z", "y"]


def test_a_damaged_file_is_said(folder: Folder) -> None:
    write(folder, 1, turn(0, "a"))
    (name,) = folder.list("journal", recursive=True)
    folder.write_bytes(name, folder.read_bytes(name).replace(b'"a"', b'"b"'))
    with pytest.raises(DamagedFileError, match="checksum"):
        steps(folder)


# Calls that an agent answers


CALLED = (0, "c")


def below(number: int, text: str, call: str = "c") -> ModelTurn:
    return ModelTurn(0, number, text, caller=(0, call))


def found_below(folder: Folder, call: str = "c") -> list[str]:
    return texts(steps(folder).workers[0, call])


def test_what_an_agent_did_for_a_call_is_the_calls(folder: Folder) -> None:
    done = CallResult(0, 0, "c", "tool", "5", row_s=4.0, caller=CALLED)
    write(folder, 1, turn(0, "a"), below(0, "x"), CallBegun(0, 0, "c", "tool", CALLED), done)

    found = steps(folder)

    assert texts(found) == ["a"]
    assert (found.results, found.begun) == ({}, {})
    (worker,) = found.workers.values()
    assert worker.results == {(0, "c"): done}
    assert list(worker.begun) == [(0, "c")]
    assert found.seconds == 4.0


def test_agents_are_found_in_the_order_of_their_calls(folder: Folder) -> None:
    calls = [ToolCall(name, FunctionCall("tool", "{}")) for name in ("c1", "c2", "c3")]
    said = ModelTurn(0, 0, tool_calls=calls)
    write(folder, 1, said, below(0, "y", "c3"), below(0, "x", "c1"))
    found = steps(folder)
    assert [texts(each) for each in found.workers_of(0)] == [["x"], ["y"]]
    assert found.workers_of(1) == found.workers_of(-1) == []


def test_a_later_attempt_goes_on_within_a_call(folder: Folder) -> None:
    write(folder, 1, turn(0, "a"), below(0, "x"), below(0, "p", "d"), below(1, "q", "d"))
    write(folder, 2, below(1, "y"), below(2, "r", "d"))
    assert found_below(folder) == ["x", "y"]
    assert found_below(folder, "d") == ["p", "q", "r"]


def test_a_ghosts_steps_within_a_call_do_not_count_either(folder: Folder) -> None:
    with ghost(folder, turn(0, "a"), below(0, "x"), below(0, "p", "d")) as first:
        write(folder, 2, below(1, "y"))
        # The first attempt lives on: in the same call, in another one, and after them.
        late = (below(1, "ghost"), below(2, "ghost"), below(1, "q", "d"))
        for each in (*late, result(0, "5"), turn(1, "ghost")):
            first.add(each)

    assert found_below(folder) == ["x", "y"]
    assert found_below(folder, "d") == ["p", "q"]
    assert texts(steps(folder)) == ["a"]
    assert list(steps(folder).results) == [(0, "c")]


def test_a_ghosts_agents_do_not_count_where_another_attempt_is_past_them(folder: Folder) -> None:
    with ghost(folder, turn(0, "a")) as first:
        write(folder, 2, result(0, "5"), turn(1, "b"))
        write(folder, 3, turn(2, "c"))
        for each in (below(0, "late"), ModelTurn(0, 0, "ghost", caller=(1, "e"))):
            first.add(each)
    found = steps(folder)
    assert texts(found) == ["a", "b", "c"]
    # Of the call that is answered they are told, but nothing follows from them.
    assert (1, "e") not in found.workers
