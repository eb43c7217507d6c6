"""What a run does about its tickets, on a fleet in this process with a clock of its own."""

from __future__ import annotations

from datetime import UTC, datetime
from math import inf

import pytest

from mloc_dagster.fleet.claims import Claim, Leases, TicketState
from mloc_dagster.fleet.dagster.tickets import Finding, TicketWatch
from mloc_dagster.fleet.engine import StepTicket, WorkerInfo, WorkerStatus
from mloc_dagster.fleet.hardware import Hardware, Requirements
from mloc_dagster.fleet.memory.engine import MemoryFleetEngine
from mloc_dagster.settings import settings

SMALL = Hardware(cpus=2, memory_bytes=4 << 30)
LEASE_S = 10.0


class World:
    """One run, one worker, and the time."""

    def __init__(self) -> None:
        self.now = 0.0
        self.engine = MemoryFleetEngine(clock=lambda: self.now, heartbeat_ttl_s=inf)
        self.watch = self.new_watch()
        self.claims = self.engine.claims(Leases(LEASE_S, stall_timeout_s=600, on_stall=print))
        self.claims.close()  # only `renew` keeps leases alive

    def new_watch(self) -> TicketWatch:
        """What another run worker starts with."""
        return TicketWatch(self.engine, "run", clock=lambda: self.now)

    def arrive(self) -> None:
        moment = datetime.now(UTC)
        info = WorkerInfo(
            worker_id="w1",
            host="node",
            pid=7,
            status=WorkerStatus.IDLE,
            queues=("cpu",),
            hardware=SMALL,
            started_at=moment,
            last_seen=moment,
        )
        self.engine.register(info)

    def submit(self, step: str = "step", attempt: int = 1, **changes: object) -> StepTicket:
        ticket = StepTicket(ticket_id=f"run:{step}:{attempt}", run_id="run", queue="cpu")
        ticket = self.watch.follow(step, ticket.model_copy(update=changes))
        self.engine.submit(ticket)
        return ticket

    def take(self) -> Claim:
        claim = self.claims.take(("cpu",), "w1", SMALL, ())
        assert claim is not None
        return claim

    def lose(self) -> list[Finding]:
        """The next ticket is taken by a worker that dies."""
        self.take()
        return self.after(LEASE_S)

    def after(self, seconds: float) -> list[Finding]:
        self.now += seconds
        return list(self.watch.look())

    def state(self, ticket: StepTicket) -> TicketState:
        return self.engine.status([ticket.ticket_id])[ticket.ticket_id].state


@pytest.fixture
def world() -> World:
    return World()


def test_what_goes_well_is_not_worth_a_word(world: World) -> None:
    world.arrive()
    ticket = world.submit()
    assert world.watch.step_of(ticket.ticket_id) == "step"
    claim = world.take()
    assert world.after(2) == []
    claim.finish("the end")
    world.watch.forget("step")
    world.watch.forget("step")
    assert world.watch.step_of(ticket.ticket_id) is None
    assert world.after(2) == []


def test_it_looks_once_a_second(world: World) -> None:
    world.arrive()
    world.submit()
    world.take()
    world.after(LEASE_S - 0.5)
    assert world.after(0.6) == [], "it has just looked"
    assert len(world.after(0.5)) == 1


def test_a_lost_workers_shard_is_sent_out_again(world: World) -> None:
    world.arrive()
    ticket = world.submit()
    (finding,) = world.lose()
    assert (finding.step_key, finding.fatal) == ("step", False)
    assert finding.text == "worker w1 fell silent; the shard goes to another worker"
    assert world.state(ticket) is TicketState.QUEUED


def test_the_third_lost_worker_fails_the_attempt_and_so_does_each_later_one(world: World) -> None:
    world.arrive()
    ticket = world.submit()
    assert [each.fatal for _ in range(2) for each in world.lose()] == [False, False]
    (finding,) = world.lose()
    assert (finding.fatal, finding.retry) == (True, True)
    assert "3 workers were lost with this shard" in finding.text
    assert world.state(ticket) is TicketState.LOST, "nothing is left of it"
    world.submit(attempt=2)
    (finding,) = world.lose()
    assert finding.fatal
    assert "4 workers" in finding.text


def test_another_run_worker_knows_of_the_losses_before_it(world: World) -> None:
    world.arrive()
    world.submit()
    world.lose()
    world.lose()
    world.watch = world.new_watch()
    world.submit()
    (finding,) = world.lose()
    assert finding.fatal


def test_losses_of_one_shard_say_nothing_of_another(world: World) -> None:
    world.arrive()
    for step in ("a", "b", "c"):
        world.submit(step)
        assert [each.fatal for each in world.lose()] == [False]
        world.take().finish()
        world.watch.forget(step)


def test_a_record_that_is_gone_is_written_anew_without_blame(world: World) -> None:
    world.arrive()
    ticket = world.submit()
    for _ in range(5):
        world.engine.forget(ticket.ticket_id)
        (finding,) = world.after(2)
        assert not finding.fatal
        assert "its record is gone" in finding.text
        assert world.state(ticket) is TicketState.QUEUED


def test_an_end_without_a_last_word_is_run_again(world: World) -> None:
    world.arrive()
    ticket = world.submit()
    world.take().finish()
    assert world.after(2) == []
    assert world.state(ticket) is TicketState.DONE, "its last word may be on its way"
    assert world.after(2) == []
    assert world.state(ticket) is TicketState.QUEUED


def test_waiting_says_why_once_and_again_when_that_changes(world: World) -> None:
    world.submit()
    assert world.after(2) == [], "too early to be worth a word"
    (finding,) = world.after(2)
    assert finding == Finding("step", "waiting: no worker is alive")
    assert world.after(2) == []
    world.arrive()
    (finding,) = world.after(2)
    assert finding.text == "waiting: the worker that fits is busy"


def test_what_nobody_can_take_fails_for_good_after_a_while(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLOC_UNSATISFIABLE_TIMEOUT_S", "60")
    settings.cache_clear()
    world.arrive()
    ticket = world.submit(requirements=Requirements(cpus=64))
    assert [each.fatal for each in world.after(4)] == [False]
    assert world.after(59) == []
    (finding,) = world.after(2)
    assert (finding.fatal, finding.retry) == (True, False)
    assert finding.text == "gave up after 61 s: no live worker fits (w1: needs 64 cores, has 2)"
    assert world.state(ticket) is TicketState.CANCELLED
    assert world.watch.step_of(ticket.ticket_id) is None


def test_waiting_for_a_busy_worker_never_fails(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLOC_UNSATISFIABLE_TIMEOUT_S", "60")
    settings.cache_clear()
    world.submit()
    world.after(50)
    world.arrive()
    findings = [each for _ in range(20) for each in world.after(30)]
    assert [each.fatal for each in findings] == [False]
    world.engine.unregister("w1")
    assert not any(each.fatal for each in world.after(50) + world.after(50)), "the wait is anew"


def test_cancelling_all_reaches_what_waits_and_what_runs(world: World) -> None:
    world.arrive()
    first, second = world.submit("a"), world.submit("b")
    claim = world.take()
    assert world.watch.any_running()
    world.watch.cancel_all()
    assert world.state(second) is TicketState.CANCELLED
    world.claims.renew()
    assert claim.should_stop()
    claim.finish(state=TicketState.CANCELLED)
    assert world.state(first) is TicketState.CANCELLED
    assert not world.watch.any_running()
