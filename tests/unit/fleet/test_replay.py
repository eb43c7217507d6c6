"""What a run worker makes of the log of a run that another one began, on Dagster's own plan."""

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import dagster as dg
import pytest
from dagster import DagsterEvent, EventLogEntry
from dagster._core.execution.api import create_execution_plan
from dagster._core.execution.plan.active import ActiveExecution
from dagster._core.execution.retries import RetryMode
from dagster._core.storage.event_log.sql_event_log import SqlEventLogStorage

from mloc_dagster.fleet.dagster.internals import (
    fact_of,
    free_ended_steps,
    rebuild,
    replayable,
)


@dg.op(out=dg.DynamicOut(int))
def plan() -> object:
    for each in range(2):
        yield dg.DynamicOutput(each, f"k{each}")


@dg.op(retry_policy=dg.RetryPolicy(max_retries=1, delay=0.001))
def shard(context: dg.OpExecutionContext, number: int) -> int:
    if number == 1 and context.retry_number == 0:
        raise ValueError("the first attempt fails")
    return number


@dg.op(out=dg.Out(int, is_required=False))
def nothing() -> object:
    yield from ()


@dg.op
def never(number: int) -> None:
    raise AssertionError(number)


@dg.op
def collect(numbers: list[int]) -> None:
    assert sorted(numbers) == [0, 1]


@dg.job
def work() -> None:
    collect(plan().map(shard).collect())
    never(nothing())


STEPS = {"plan", "shard[k0]", "shard[k1]", "collect", "nothing"}


@pytest.fixture(scope="module")
def log() -> Sequence[EventLogEntry]:
    """The log of a whole run, as Dagster writes it."""
    with dg.DagsterInstance.ephemeral() as instance:
        done = work.execute_in_process(instance=instance)
        return list(instance.all_logs(done.run_id))


@dataclass(frozen=True)
class Known:
    """What a replay leaves behind.

    Attributes:
        done: Steps that succeeded.
        ahead: Steps to go on with.
        wait_s: Seconds until the next retry.
        spent: Attempts that failed, by step.
    """

    done: set[str]
    ahead: list[str]
    wait_s: float
    spent: Mapping[str, int]


class _Enough(Exception):
    """Leaves an execution that is not complete, which Dagster would complain of."""


def replayed(entries: Sequence[EventLogEntry]) -> Known:
    """Returns what another run worker knows after reading the log."""
    active = ActiveExecution(create_execution_plan(work), RetryMode.ENABLED)
    known: list[Known] = []
    with suppress(_Enough), active:
        steps = rebuild(active, [each for each in replayable(entries) if each.step_key])
        known.append(
            Known(
                done=set(active._success),
                ahead=[each.key for each in steps],
                wait_s=active.sleep_interval(),
                spent=active.retry_state.snapshot_attempts(),
            )
        )
        raise _Enough
    return known[0]


def with_wait(entry: EventLogEntry, seconds: float) -> EventLogEntry:
    """The entry, as a step with a long retry delay logs it."""
    event = entry.dagster_event
    if event is None or not event.is_step_up_for_retry:
        return entry
    data = event.step_retry_data._replace(seconds_to_wait=seconds)
    return entry._replace(dagster_event=event._replace(event_specific_data=data))


def place(log: Sequence[EventLogEntry], step: str, kind: dg.DagsterEventType) -> int:
    """Where the log tells of a step's last event of a kind."""

    def tells(event: DagsterEvent | None) -> bool:
        return event is not None and (event.step_key, event.event_type) == (step, kind)

    return max(at for at, entry in enumerate(log) if tells(entry.dagster_event))


def test_a_run_can_be_resumed_wherever_its_log_breaks_off(log: Sequence[EventLogEntry]) -> None:
    waits = [with_wait(entry, 600) for entry in log]
    for end in range(len(waits) + 1):
        known = replayed(waits[:end])
        assert known.done.isdisjoint(known.ahead), end
        assert known.done | set(known.ahead) <= STEPS
        goes_on = known.ahead or known.wait_s > 0
        assert goes_on or known.done == STEPS, f"nothing to go on with after {end} events"
    whole = replayed(waits)
    assert (whole.done, whole.ahead) == (STEPS, [])


def test_steps_that_were_under_way_are_gone_on_with(log: Sequence[EventLogEntry]) -> None:
    end = place(log, "plan", dg.DagsterEventType.STEP_SUCCESS) + 1
    known = replayed(log[:end])
    assert "plan" in known.done
    assert {"shard[k0]", "shard[k1]"} <= set(known.ahead)


def test_a_retry_waits_only_while_it_has_not_begun(log: Sequence[EventLogEntry]) -> None:
    waits = [with_wait(entry, 600) for entry in log]
    failed = place(log, "shard[k1]", dg.DagsterEventType.STEP_UP_FOR_RETRY)
    begun = place(log, "shard[k1]", dg.DagsterEventType.STEP_RESTARTED)
    known = replayed(waits[: failed + 1])
    assert "shard[k1]" not in known.ahead
    assert 590 < known.wait_s <= 600
    assert "shard[k1]" in replayed(waits[: begun + 1]).ahead, "its second attempt is under way"


def test_the_attempts_that_were_spent_are_known(log: Sequence[EventLogEntry]) -> None:
    begun = place(log, "shard[k1]", dg.DagsterEventType.STEP_RESTARTED)
    assert replayed(log[: begun + 1]).spent == {"shard[k1]": 1}


def test_skipped_steps_are_left_to_dagster(log: Sequence[EventLogEntry]) -> None:
    kinds = {each.event_type for each in replayable(log)}
    assert any(each.dagster_event and each.dagster_event.is_step_skipped for each in log)
    assert dg.DagsterEventType.STEP_SKIPPED not in kinds


def test_every_event_of_a_run_is_told_from_the_others(log: Sequence[EventLogEntry]) -> None:
    assert len({fact_of(entry) for entry in log}) == len(log)
    assert [fact_of(entry) for entry in log] == [fact_of(entry) for entry in log]
    later = log[0]._replace(timestamp=time.time())
    assert fact_of(later) != fact_of(log[0])


@pytest.mark.parametrize("done", [(), ("slot",), ("slot", "entry")])
def test_a_pool_goes_on_wherever_its_run_worker_died(done: Sequence[str]) -> None:
    """Dagster frees a slot in three transactions; the last one assigns it to who waits longest."""
    with dg.DagsterInstance.local_temp() as instance:
        pools = instance.event_log_storage
        assert isinstance(pools, SqlEventLogStorage)
        pools.set_concurrency_slots("narrow", 1)
        first, *others = [pools.claim_concurrency_slot("narrow", "run", each) for each in "abc"]
        assert [each.is_claimed for each in (first, *others)] == [True, False, False]
        if "slot" in done:
            pools._free_concurrency_slots("run", "a")
        if "entry" in done:
            pools._remove_pending_steps("run", "a")
        free_ended_steps(pools, "narrow", "run", {"a"})
        again = [pools.claim_concurrency_slot("narrow", "run", each).is_claimed for each in "bc"]
        assert again == [True, False]


def test_a_pool_whose_steps_have_not_ended_stays_as_it_is() -> None:
    with dg.DagsterInstance.local_temp() as instance:
        pools = instance.event_log_storage
        pools.set_concurrency_slots("narrow", 1)
        for each in "ab":
            pools.claim_concurrency_slot("narrow", "run", each)
        before = pools.get_concurrency_info("narrow")
        free_ended_steps(pools, "narrow", "run", {"z"})
        assert pools.get_concurrency_info("narrow") == before
