"""What every `FleetEngine` promises to runs, and every `TicketClaims` to workers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from datetime import UTC, datetime
from typing import Protocol

import pytest
import redis

from mloc_dagster.errors import FleetUnavailableError
from mloc_dagster.fleet import (
    RUNS_QUEUE,
    WARM_PATIENCE_S,
    Claim,
    FleetEngine,
    GpuDevice,
    Hardware,
    Leases,
    MemoryFleetEngine,
    RedisFleetEngine,
    Requirements,
    StepTicket,
    StopReason,
    TicketState,
    WorkerInfo,
    WorkerStatus,
    connect,
    heartbeat_key,
    lease_key,
    queue_of,
    queues_for,
    ticket_key,
)
from mloc_dagster.settings import settings
from tests.ports import free_port

GIB = 1 << 30
SMALL = Hardware(cpus=2, memory_bytes=4 * GIB)
H200 = Hardware(
    cpus=8,
    memory_bytes=64 * GIB,
    gpus=(GpuDevice(index=0, name="nvidia-h200", memory_bytes=140 * GIB),),
)
LEASE_S = 30.0


class Fleet(Protocol):
    """An engine under test, and what the tests need of the world around it."""

    engine: FleetEngine

    def register(self, info: WorkerInfo) -> None:
        """Registers a worker, for the next submission to know."""
        ...

    def let_lapse(self, ticket_id: str) -> None:
        """Lets the time of a lease pass."""
        ...

    def let_fall_silent(self, worker_id: str) -> None:
        """Lets the time of a heartbeat pass."""
        ...

    def let_patience_end(self, ticket_id: str) -> None:
        """Lets the time pass for which a ticket is kept for a warm worker."""
        ...


class MemoryFleet:
    def __init__(self) -> None:
        self.now = 1000.0
        self.engine: FleetEngine = MemoryFleetEngine(clock=lambda: self.now)

    def register(self, info: WorkerInfo) -> None:
        self.engine.register(info)

    def let_fall_silent(self, worker_id: str) -> None:
        self.now += settings().heartbeat_ttl_s

    def let_lapse(self, ticket_id: str) -> None:
        self.now += LEASE_S

    def let_patience_end(self, ticket_id: str) -> None:
        self.now += WARM_PATIENCE_S + 0.1


class RedisFleet:
    def __init__(self, url: str) -> None:
        self.client = connect(url)
        self.engine: FleetEngine = RedisFleetEngine(self.client)

    def register(self, info: WorkerInfo) -> None:
        self.engine.register(info)
        self.engine = RedisFleetEngine(self.client)  # it remembers the workers for half a second

    def let_fall_silent(self, worker_id: str) -> None:
        self.client.delete(heartbeat_key(worker_id))

    def let_lapse(self, ticket_id: str) -> None:
        self.client.delete(lease_key(ticket_id))

    def let_patience_end(self, ticket_id: str) -> None:
        long_ago = -WARM_PATIENCE_S - 0.1
        self.client.hincrbyfloat(ticket_key(ticket_id), "submitted_at", long_ago)


@pytest.fixture(params=["memory", "redis"])
def fleet(request: pytest.FixtureRequest) -> Iterator[Fleet]:
    if request.param == "memory":
        yield MemoryFleet()
        return
    opened = RedisFleet(request.getfixturevalue("redis_url"))
    yield opened
    opened.engine.close()


def leases(on_stall: Callable[[Claim], None] | None = None, stall_timeout_s: float = 600) -> Leases:
    """How claims are kept; work that hangs is an error, unless the test looks for it."""

    def no_stall(claim: Claim) -> None:
        raise AssertionError(claim.ticket_id)

    return Leases(LEASE_S, stall_timeout_s, on_stall or no_stall)


class Worker:
    """A worker of the fleet, without a process."""

    def __init__(
        self, fleet: Fleet, name: str, hardware: Hardware = SMALL, warm: tuple[str, ...] = ()
    ) -> None:
        self.name = name
        self.hardware = hardware
        self.warm = warm
        self.claims = fleet.engine.claims(leases())
        self.claims.close()  # only `renew` keeps leases alive
        now = datetime.now(UTC)
        self.info = WorkerInfo(
            worker_id=name,
            host="node",
            pid=7,
            status=WorkerStatus.IDLE,
            queues=queues_for(hardware),
            hardware=hardware,
            warm_models=warm,
            started_at=now,
            last_seen=now,
        )
        fleet.register(self.info)

    def take(self) -> Claim | None:
        return self.claims.take(self.info.queues, self.name, self.hardware, self.warm)

    def is_woken(self) -> bool:
        """Whether a wait would end at once."""
        return self.claims.wait(self.info.queues, self.name, 0.02)

    def waits(self) -> bool:
        """Waits for a ticket; false when it waited in vain."""
        return self.claims.wait(self.info.queues, self.name, 60)

    def work_when_woken(self) -> str:
        """Does what an idle worker does; returns the ticket that it comes to."""
        while self.waits():
            if (claim := self.take()) is not None:
                return claim.ticket_id
        raise AssertionError(f"{self.name} waits in vain")

    def must_take(self) -> Claim:
        claim = self.take()
        assert claim is not None, f"{self.name} finds nothing"
        return claim


def ticket(name: str = "run:shard:1", **fields: object) -> StepTicket:
    """A ticket for whoever has what `requirements` say; its run is the name's first part."""
    needs = fields.get("requirements", Requirements())
    assert isinstance(needs, Requirements)
    run_id = name.partition(":")[0]
    known = StepTicket(ticket_id=name, run_id=run_id, queue=queue_of(needs), payload="do it")
    return known.model_copy(update=fields)


def state(fleet: Fleet, ticket_id: str = "run:shard:1") -> TicketState:
    return fleet.engine.status([ticket_id])[ticket_id].state


def order(worker: Worker, count: int) -> list[str]:
    """The tickets that a worker takes one after the other."""
    taken: list[str] = []
    for _ in range(count):
        claim = worker.must_take()
        taken.append(claim.ticket_id)
        claim.finish()
    return taken


# From submission to the end


def test_a_ticket_goes_its_way_to_one_worker(fleet: Fleet) -> None:
    first, second = Worker(fleet, "w1"), Worker(fleet, "w2")
    fleet.engine.submit(ticket())
    assert state(fleet) is TicketState.QUEUED
    claim = first.must_take()
    assert (claim.ticket_id, claim.run_id, claim.payload) == ("run:shard:1", "run", "do it")
    assert second.take() is None
    status = fleet.engine.status(["run:shard:1"])["run:shard:1"]
    assert (status.state, status.worker_id, status.losses) == (TicketState.RUNNING, "w1", 0)
    assert claim.say("half")
    assert claim.finish("all")
    assert state(fleet) is TicketState.DONE
    assert list(fleet.engine.messages("run")) == ["half", "all"]
    assert second.take() is None


def test_submitting_again_runs_it_once(fleet: Fleet) -> None:
    worker = Worker(fleet, "w1")
    fleet.engine.submit(ticket())
    fleet.engine.submit(ticket())
    assert fleet.engine.queue_depths()["cpu"] == 1
    claim = worker.must_take()
    fleet.engine.submit(ticket())
    assert worker.take() is None
    assert state(fleet) is TicketState.RUNNING
    claim.finish()
    fleet.engine.submit(ticket())
    assert state(fleet) is TicketState.DONE
    assert worker.take() is None


def test_of_many_workers_at_once_one_gets_it(fleet: Fleet) -> None:
    workers = [Worker(fleet, f"w{each}") for each in range(8)]
    names = [f"run:{each}:1" for each in range(20)]
    for name in names:
        fleet.engine.submit(ticket(name))

    def take_all(worker: Worker) -> list[str]:
        taken: list[str] = []
        while (claim := worker.take()) is not None:
            taken.append(claim.ticket_id)
        return taken

    with ThreadPoolExecutor(len(workers)) as threads:
        taken = [each for found in threads.map(take_all, workers) for each in found]
    assert sorted(taken) == sorted(names)


def test_giving_back_costs_nothing(fleet: Fleet) -> None:
    worker = Worker(fleet, "w1")
    for name in ("run:a:1", "run:b:1"):
        fleet.engine.submit(ticket(name))
    claim = worker.must_take()
    assert claim.give_back()
    status = fleet.engine.status(["run:a:1"])["run:a:1"]
    assert (status.state, status.losses) == (TicketState.QUEUED, 0)
    assert not claim.say("too late")
    assert order(worker, 2) == ["run:a:1", "run:b:1"]


def test_what_is_forgotten_leaves_nothing_and_may_come_again(fleet: Fleet) -> None:
    worker = Worker(fleet, "w1")
    fleet.engine.submit(ticket())
    fleet.engine.forget("run:shard:1")
    assert fleet.engine.queue_depths()["cpu"] == 0
    assert worker.take() is None
    fleet.engine.submit(ticket())
    claim = worker.must_take()
    fleet.engine.forget("run:shard:1")
    assert not claim.finish("late")
    assert fleet.engine.messages("run") in ((), [])
    fleet.engine.submit(ticket())
    assert worker.must_take().finish()


def test_a_ticket_nobody_knows_is_lost_without_blame(fleet: Fleet) -> None:
    status = fleet.engine.status(["run:shard:1"])["run:shard:1"]
    assert (status.state, status.worker_id, status.losses) == (TicketState.LOST, None, 0)
    assert "gone" in status.why


# Workers that fall silent


def test_a_lost_ticket_goes_to_another_worker_from_its_old_place(fleet: Fleet) -> None:
    first, second = Worker(fleet, "w1"), Worker(fleet, "w2")
    for name in ("run:a:1", "run:b:1"):
        fleet.engine.submit(ticket(name))
    first.must_take()
    fleet.let_lapse("run:a:1")
    status = fleet.engine.status(["run:a:1"])["run:a:1"]
    assert status.state is TicketState.LOST
    assert "w1" in status.why
    fleet.engine.submit(ticket("run:a:1"))
    status = fleet.engine.status(["run:a:1"])["run:a:1"]
    assert (status.state, status.losses) == (TicketState.QUEUED, 1)
    assert order(second, 2) == ["run:a:1", "run:b:1"]


def test_who_lost_a_ticket_has_no_voice(fleet: Fleet) -> None:
    first, second = Worker(fleet, "w1"), Worker(fleet, "w2")
    fleet.engine.submit(ticket())
    old = first.must_take()
    fleet.let_lapse("run:shard:1")
    fleet.engine.submit(ticket())
    assert not old.say("I am alive"), "it waits for another worker"
    new = second.must_take()
    assert not old.finish("done")
    assert not old.give_back()
    assert (old.should_stop(), old.reason) == (True, StopReason.LOST)
    assert state(fleet) is TicketState.RUNNING
    assert new.finish("done by the second")
    assert list(fleet.engine.messages("run")) == ["done by the second"]


@pytest.mark.parametrize("last_progress", [Claim.say, Claim.finish])
def test_a_lapse_that_nobody_noticed_is_no_loss(
    fleet: Fleet, last_progress: Callable[[Claim, str], bool]
) -> None:
    worker = Worker(fleet, "w1")
    fleet.engine.submit(ticket())
    claim = worker.must_take()
    fleet.let_lapse("run:shard:1")
    assert last_progress(claim, "still here")
    assert list(fleet.engine.messages("run")) == ["still here"]


def test_a_lapsed_lease_can_be_renewed_until_the_ticket_went_on(fleet: Fleet) -> None:
    first, second = Worker(fleet, "w1"), Worker(fleet, "w2")
    fleet.engine.submit(ticket())
    claim = first.must_take()
    fleet.let_lapse("run:shard:1")
    first.claims.renew()
    assert state(fleet) is TicketState.RUNNING
    assert not claim.should_stop()
    fleet.let_lapse("run:shard:1")
    fleet.engine.submit(ticket())
    second.must_take()
    first.claims.renew()
    assert (claim.should_stop(), claim.reason) == (True, StopReason.LOST)
    assert [each.ticket_id for each in first.claims.held()] == ["run:shard:1"]
    first.claims.drop(claim)
    assert not first.claims.held()


# Cancelling


def test_cancelling_takes_a_waiting_ticket_out(fleet: Fleet) -> None:
    worker = Worker(fleet, "w1")
    fleet.engine.submit(ticket())
    fleet.engine.cancel("run:shard:1")
    assert state(fleet) is TicketState.CANCELLED
    assert worker.take() is None
    assert fleet.engine.queue_depths()["cpu"] == 0
    fleet.engine.submit(ticket())
    assert state(fleet) is TicketState.CANCELLED, "only forgetting it lets it come again"


def test_cancelling_reaches_the_worker_of_a_running_ticket(fleet: Fleet) -> None:
    worker = Worker(fleet, "w1")
    fleet.engine.submit(ticket())
    claim = worker.must_take()
    fleet.engine.cancel("run:shard:1")
    assert state(fleet) is TicketState.RUNNING
    worker.claims.renew()
    assert (claim.should_stop(), claim.reason) == (True, StopReason.CANCELLED)
    assert claim.finish(state=TicketState.CANCELLED), "its last words still count"
    assert state(fleet) is TicketState.CANCELLED


def test_cancelling_what_is_over_or_unknown_changes_nothing(fleet: Fleet) -> None:
    worker = Worker(fleet, "w1")
    fleet.engine.cancel("run:never:1")
    fleet.engine.submit(ticket())
    worker.must_take().finish()
    fleet.engine.cancel("run:shard:1")
    assert state(fleet) is TicketState.DONE


# Whose turn it is


def test_a_short_run_waits_for_one_ticket_of_a_long_one(fleet: Fleet) -> None:
    worker = Worker(fleet, "w1")
    for each in range(100):
        fleet.engine.submit(ticket(f"long:{each:03d}:1"))
    fleet.engine.submit(ticket("short:0:1"))
    assert order(worker, 3) == ["long:000:1", "short:0:1", "long:001:1"]
    fleet.engine.submit(ticket("later:0:1"))
    assert "later:0:1" in order(worker, 2)


def test_priority_goes_before_everything(fleet: Fleet) -> None:
    worker = Worker(fleet, "w1", warm=("small",))
    for each in range(3):
        fleet.engine.submit(ticket(f"long:{each}:1", model_key="small"))
    fleet.engine.submit(ticket("urgent:0:1", priority=1, model_key="large"))
    fleet.engine.submit(ticket("vital:0:1", priority=2))
    fleet.let_patience_end("urgent:0:1")
    assert order(worker, 3) == ["vital:0:1", "urgent:0:1", "long:0:1"]


def test_priority_goes_before_everything_in_another_queue(fleet: Fleet) -> None:
    worker = Worker(fleet, "gpu", H200)
    fleet.engine.submit(ticket("any:0:1", requirements=Requirements(gpus=1)))
    needs = Requirements(gpus=1, gpu_type="h200")
    fleet.engine.submit(ticket("urgent:0:1", requirements=needs, priority=1))
    assert order(worker, 2) == ["urgent:0:1", "any:0:1"]


def test_no_queue_starves_another(fleet: Fleet) -> None:
    worker = Worker(fleet, "gpu", H200)
    for each in range(5):
        fleet.engine.submit(ticket(f"any:{each}:1", requirements=Requirements(gpus=1)))
    needs = Requirements(gpus=1, gpu_type="h200")
    fleet.engine.submit(ticket("typed:0:1", requirements=needs))
    assert "typed:0:1" in order(worker, 2)


def test_what_does_not_fit_hides_nothing_behind_it(fleet: Fleet) -> None:
    worker = Worker(fleet, "w1")
    for each in range(100):
        fleet.engine.submit(ticket(f"large:{each:03d}:1", requirements=Requirements(cpus=64)))
    fleet.engine.submit(ticket("large:small:1"))
    assert worker.must_take().ticket_id == "large:small:1"
    assert worker.take() is None


# Who may have it


def test_a_waiting_ticket_says_what_it_lacks(fleet: Fleet) -> None:
    fleet.engine.submit(ticket(requirements=Requirements(cpus=6, memory_bytes=32 * GIB)))
    status = fleet.engine.status(["run:shard:1"])["run:shard:1"]
    assert (status.satisfiable, status.why) == (False, "no worker is alive")
    small = Worker(fleet, "small")
    status = fleet.engine.status(["run:shard:1"])["run:shard:1"]
    assert not status.satisfiable
    assert "small: needs 6 cores, has 2; needs 32 GiB of memory, has 4 GiB" in status.why
    assert small.take() is None
    large = Worker(fleet, "large", Hardware(cpus=8, memory_bytes=64 * GIB))
    assert fleet.engine.status(["run:shard:1"])["run:shard:1"].satisfiable
    assert large.must_take().ticket_id == "run:shard:1"


def test_shards_and_runs_say_that_they_wait_for_different_workers(fleet: Fleet) -> None:
    Worker(fleet, "w1")
    fleet.engine.submit(StepTicket(ticket_id="run:run", run_id="run", queue=RUNS_QUEUE))
    status = fleet.engine.status(["run:run"])["run:run"]
    assert (status.satisfiable, status.why) == (False, "no run worker is alive")


def test_an_idle_worker_that_has_the_model_gets_the_ticket(fleet: Fleet) -> None:
    cold, warm = Worker(fleet, "cold"), Worker(fleet, "warm", warm=("m1",))
    fleet.engine.submit(ticket(model_key="m1"))
    assert cold.take() is None, "it is kept for the warm one for a moment"
    assert warm.must_take().ticket_id == "run:shard:1"


def test_a_ticket_is_kept_for_a_warm_worker_only_for_a_moment(fleet: Fleet) -> None:
    cold = Worker(fleet, "cold")
    Worker(fleet, "warm", warm=("m1",))
    fleet.engine.submit(ticket(model_key="m1"))
    assert cold.take() is None
    fleet.let_patience_end("run:shard:1")
    assert cold.must_take().ticket_id == "run:shard:1"


def test_a_busy_warm_worker_holds_nobody_up(fleet: Fleet) -> None:
    cold, warm = Worker(fleet, "cold"), Worker(fleet, "warm", warm=("m1",))
    fleet.register(warm.info.model_copy(update={"status": WorkerStatus.RUNNING}))
    fleet.engine.submit(ticket(model_key="m1"))
    assert cold.must_take().ticket_id == "run:shard:1"


def test_a_warm_worker_prefers_its_model_among_what_just_came(fleet: Fleet) -> None:
    fleet.engine.submit(ticket("run:a:1", model_key="m2"))
    fleet.engine.submit(ticket("run:b:1", model_key="m1"))
    warm = Worker(fleet, "warm", warm=("m1",))
    assert order(warm, 2) == ["run:b:1", "run:a:1"]


# What wakes idle workers


def test_a_ticket_ends_the_wait_of_one_idle_worker(fleet: Fleet) -> None:
    workers = [Worker(fleet, f"w{each}") for each in range(3)]
    assert [each.take() for each in workers] == [None] * 3
    with ThreadPoolExecutor(3) as threads:
        waits = [threads.submit(each.work_when_woken) for each in workers]
        fleet.engine.submit(ticket())
        woken, others = wait(waits, timeout=30, return_when=FIRST_COMPLETED)
        assert (len(woken), len(others)) == (1, 2)
        assert not wait(others, timeout=0.2).done, "one ticket is for one worker"
        for each in range(2):
            fleet.engine.submit(ticket(f"run:{each}:1"))
        assert len({each.result(timeout=30) for each in waits}) == 3


def test_a_ticket_between_look_and_wait_is_not_missed(fleet: Fleet) -> None:
    worker = Worker(fleet, "w1")
    assert worker.take() is None
    fleet.engine.submit(ticket())
    assert worker.is_woken()
    worker.must_take()
    assert not worker.is_woken(), "it is told once"


def test_many_tickets_wake_many_workers_one_after_the_other(fleet: Fleet) -> None:
    workers = [Worker(fleet, f"w{each}") for each in range(3)]
    for each in range(3):
        fleet.engine.submit(ticket(f"run:{each}:1"))
    for each in workers:
        assert each.is_woken()
        each.must_take()
    assert not workers[0].is_woken()


def test_a_ticket_that_comes_back_wakes_a_worker(fleet: Fleet) -> None:
    first, second = Worker(fleet, "w1"), Worker(fleet, "w2")
    fleet.engine.submit(ticket())
    assert first.is_woken()
    claim = first.must_take()
    assert not second.is_woken()
    claim.give_back()
    assert second.is_woken()
    second.must_take()
    fleet.let_lapse("run:shard:1")
    assert not first.is_woken()
    fleet.engine.submit(ticket())
    assert first.is_woken()


def test_what_waits_already_wakes_nobody_unless_asked_to(fleet: Fleet) -> None:
    worker = Worker(fleet, "w1")
    fleet.engine.submit(ticket())
    assert worker.is_woken()
    fleet.engine.submit(ticket())
    assert not worker.is_woken()
    fleet.engine.wake("cpu")
    assert worker.is_woken()


def test_the_warm_worker_is_woken_and_so_is_another_in_its_place(fleet: Fleet) -> None:
    cold, warm = Worker(fleet, "cold"), Worker(fleet, "warm", warm=("m1",))
    fleet.engine.submit(ticket(model_key="m1"))
    assert warm.is_woken()
    assert cold.is_woken()
    assert cold.take() is None, "it is kept for the warm one"
    fleet.let_patience_end("run:shard:1")
    assert cold.waits(), "the time ends it, as nothing else does"
    assert cold.must_take().ticket_id == "run:shard:1"


def test_who_lacks_the_hardware_wakes_who_has_it(fleet: Fleet) -> None:
    small = Worker(fleet, "small")
    large = Worker(fleet, "large", Hardware(cpus=8, memory_bytes=64 * GIB))
    Worker(fleet, "gpu", H200)
    fleet.engine.submit(ticket(requirements=Requirements(cpus=6)))
    assert small.is_woken(), "it waited longest"
    assert not large.is_woken()
    assert small.take() is None
    assert not small.is_woken()
    assert large.is_woken()
    large.must_take()


def test_a_worker_waits_for_each_of_its_queues(fleet: Fleet) -> None:
    worker = Worker(fleet, "gpu", H200)
    for needs in (Requirements(gpus=1), Requirements(gpus=1, gpu_type="h200")):
        fleet.engine.submit(ticket(f"run:{needs.gpu_type}:1", requirements=needs))
        assert worker.is_woken()
        worker.must_take().finish()
    fleet.engine.submit(ticket())
    assert not worker.is_woken(), "it leaves the queue cpu to others"


def test_many_tickets_leave_one_entry(fleet: Fleet) -> None:
    worker = Worker(fleet, "w1")
    fleet.engine.submit(*(ticket(f"run:{each}:1") for each in range(3)))
    assert worker.is_woken()
    assert not worker.is_woken()


def test_a_wait_can_be_ended_and_wakes_no_other_worker(fleet: Fleet) -> None:
    first, second = Worker(fleet, "w1"), Worker(fleet, "w2")
    with ThreadPoolExecutor(1) as threads:
        waits = threads.submit(first.waits)
        first.claims.end_wait("w1")
        assert waits.result(timeout=300)
    assert not second.is_woken()


def test_a_woken_worker_that_ends_wakes_another_one_in_its_place(fleet: Fleet) -> None:
    first, second = Worker(fleet, "w1"), Worker(fleet, "w2")
    fleet.engine.submit(ticket())
    assert first.is_woken()
    first.claims.pass_on()
    assert second.is_woken()


def test_what_was_meant_for_one_worker_alone_is_not_passed_on(fleet: Fleet) -> None:
    cold, warm = Worker(fleet, "cold"), Worker(fleet, "warm", warm=("m1",))
    fleet.engine.submit(ticket(model_key="m1"))
    assert warm.is_woken(), "by its own list first"
    warm.claims.pass_on()
    assert cold.is_woken(), "by the list of the queue"
    assert not cold.is_woken()


def test_a_ticket_that_is_queued_again_wakes_its_warm_worker_only_after_a_loss(
    fleet: Fleet,
) -> None:
    cold, warm = Worker(fleet, "cold"), Worker(fleet, "warm", warm=("m1",))
    fleet.engine.submit(ticket(model_key="m1"))
    assert warm.is_woken()
    assert cold.is_woken()
    warm.must_take().give_back()
    assert cold.is_woken()
    assert not warm.is_woken(), "it has just had it"
    warm.must_take()
    fleet.let_lapse("run:shard:1")
    fleet.engine.submit(ticket(model_key="m1"))
    assert warm.is_woken()
    assert cold.is_woken()


def test_of_tickets_that_come_together_one_is_kept_for_a_warm_worker(fleet: Fleet) -> None:
    cold, warm = Worker(fleet, "cold"), Worker(fleet, "warm", warm=("m1",))
    fleet.engine.submit(*(ticket(f"run:{each}:1", model_key="m1") for each in "ab"))
    assert cold.must_take().ticket_id == "run:b:1"
    assert warm.must_take().ticket_id == "run:a:1"


# What a run keeps


def test_a_run_reads_its_mailbox_until_it_has_taken_the_messages_out(fleet: Fleet) -> None:
    worker = Worker(fleet, "w1")
    fleet.engine.submit(ticket())
    claim = worker.must_take()
    for word in ("one", "two", "two"):
        assert claim.say(word)
    read = fleet.engine.messages("run")
    assert list(read) == ["one", "two", "two"]
    claim.finish("three")
    fleet.engine.remove_messages("run", read)
    fleet.engine.remove_messages("run", read)
    assert list(fleet.engine.messages("run")) == ["three"]
    assert list(fleet.engine.messages("other")) == []


def test_workers_read_what_a_run_says_of_itself(fleet: Fleet) -> None:
    assert fleet.engine.run_details("run") is None
    fleet.engine.describe_run("run", "its details")
    assert fleet.engine.run_details("run") == "its details"


def test_a_run_is_woken_from_its_own_process(fleet: Fleet) -> None:
    fleet.engine.messages("run")
    with ThreadPoolExecutor(1) as threads:
        waits = threads.submit(fleet.engine.wait, "run", 300)
        fleet.engine.notify("run")
        waits.result(timeout=300)


def test_cancelling_a_run_cancels_all_its_tickets(fleet: Fleet) -> None:
    worker = Worker(fleet, "w1")
    fleet.engine.submit(ticket("run:a:1"), ticket("run:b:1"), ticket("other:a:1"))
    claim = worker.must_take()
    assert claim.ticket_id == "run:a:1"
    fleet.engine.cancel_run("run")
    assert state(fleet, "run:b:1") is TicketState.CANCELLED
    assert state(fleet, "other:a:1") is TicketState.QUEUED
    worker.claims.renew()
    assert claim.reason is StopReason.CANCELLED


def test_what_is_known_of_a_run_goes_with_it(fleet: Fleet) -> None:
    worker = Worker(fleet, "w1")
    fleet.engine.describe_run("run", "its details")
    fleet.engine.submit(ticket("run:a:1"), ticket("run:b:1"), ticket("other:a:1"))
    claim = worker.must_take()
    claim.say("half")
    fleet.engine.forget_run("run")
    assert not claim.finish("late")
    assert fleet.engine.run_details("run") is None
    assert list(fleet.engine.messages("run")) == []
    assert {state(fleet, each) for each in ("run:a:1", "run:b:1")} == {TicketState.LOST}
    assert worker.must_take().ticket_id == "other:a:1"


# What people look at


def test_lapsed_tickets_are_those_whose_worker_fell_silent(fleet: Fleet) -> None:
    worker = Worker(fleet, "w1")
    fleet.engine.submit(ticket("run:a:1"), ticket("run:b:1"))
    worker.must_take()
    assert list(fleet.engine.lapsed("cpu")) == []
    fleet.let_lapse("run:a:1")
    assert [(each.ticket_id, each.worker_id) for each in fleet.engine.lapsed("cpu")] == [
        ("run:a:1", "w1")
    ]
    assert list(fleet.engine.lapsed("gpu")) == []
    fleet.engine.forget("run:a:1")
    assert list(fleet.engine.lapsed("cpu")) == []


def test_it_says_whether_anything_waits(fleet: Fleet) -> None:
    worker = Worker(fleet, "w1")
    assert not fleet.engine.waiting("cpu")
    fleet.engine.submit(ticket())
    assert fleet.engine.waiting("cpu")
    assert not fleet.engine.waiting("gpu")
    worker.must_take()
    assert not fleet.engine.waiting("cpu")


def test_a_silent_worker_is_known_and_gets_no_work(fleet: Fleet) -> None:
    Worker(fleet, "w1")
    fleet.let_fall_silent("w1")
    assert list(fleet.engine.workers()) == []
    assert list(fleet.engine.silent_workers()) == ["w1"]
    fleet.engine.check_writable()


def test_queue_depths_count_what_waits(fleet: Fleet) -> None:
    worker = Worker(fleet, "w1")
    Worker(fleet, "gpu", H200)
    assert set(fleet.engine.queue_depths()) >= {"cpu", "gpu", "gpu.h200"}
    fleet.engine.submit(ticket("run:a:1"))
    fleet.engine.submit(ticket("run:b:1"))
    fleet.engine.submit(ticket("run:c:1", requirements=Requirements(gpus=1, gpu_type="l4")))
    depths = fleet.engine.queue_depths()
    assert (depths["cpu"], depths["gpu"], depths["gpu.l4"]) == (2, 0, 1)
    worker.must_take()
    assert fleet.engine.queue_depths()["cpu"] == 1


def test_workers_are_as_they_registered(fleet: Fleet) -> None:
    worker = Worker(fleet, "w1")
    assert list(fleet.engine.workers()) == [worker.info]


def test_waiting_for_news_ends_at_once_or_in_time(fleet: Fleet) -> None:
    worker = Worker(fleet, "w1")
    fleet.engine.submit(ticket())
    claim = worker.must_take()
    fleet.engine.wait("run", 0.01)
    with ThreadPoolExecutor(1) as threads:
        waits = threads.submit(fleet.engine.wait, "run", 60)
        while not waits.done():
            assert claim.say("news")
        waits.result()


# On Redis only


def test_a_redis_that_is_away_is_an_error_of_the_fleet() -> None:
    url = f"redis://127.0.0.1:{free_port()}/0"
    with redis.Redis.from_url(url, decode_responses=True, retry=None) as client:
        engine = RedisFleetEngine(client)
        claims = engine.claims(leases())
        claims.close()
        asked: list[Callable[[], object]] = [
            lambda: engine.submit(ticket()),
            lambda: engine.status(["run:shard:1"]),
            lambda: engine.messages("run"),
            engine.workers,
            lambda: claims.take(("cpu",), "w1", SMALL, ()),
        ]
        for ask in asked:
            with pytest.raises(FleetUnavailableError, match="does not answer") as caught:
                ask()
            assert caught.value.reply == ""


def test_a_redis_that_takes_nothing_says_why(redis_url: str) -> None:
    with redis.Redis.from_url(redis_url) as owner:
        owner.acl_setuser("reader", enabled=True, nopass=True, keys=["*"], categories=["+@read"])
    with connect(redis_url.replace("redis://", "redis://reader:any@")) as client:
        with pytest.raises(FleetUnavailableError, match="refuses") as caught:
            RedisFleetEngine(client).check_writable()
        assert "permissions" in caught.value.reply


def test_redis_keeps_nothing_of_a_run_that_has_ended(redis_url: str) -> None:
    fleet = RedisFleet(redis_url)
    worker = Worker(fleet, "w1")
    engine = fleet.engine
    engine.describe_run("run", "its details")
    engine.messages("run")
    for each in range(3):
        engine.submit(ticket(f"run:{each}:1"))
    worker.must_take().finish("done")
    worker.must_take()
    engine.forget_run("run")
    with redis.Redis.from_url(redis_url, decode_responses=True) as client:
        known = [str(key) for key in client.scan_iter("*")]
    left = [key for key in known if "run" in key]
    assert left == ["queue:cpu:next:run"], "which expires"
    assert engine.queue_depths()["cpu"] == 0
    fleet.engine.close()


def test_work_that_hangs_is_given_up_and_not_renewed(fleet: Fleet) -> None:
    stalled: list[Claim] = []
    claims = fleet.engine.claims(leases(stalled.append, stall_timeout_s=60))
    claims.close()
    for name in ("run:hangs:1", "run:talks:1"):
        fleet.engine.submit(ticket(name))
    hangs, talks = (claims.take(("cpu",), "w1", SMALL, ()) for _ in range(2))
    assert hangs is not None
    assert talks is not None
    for claim in (hangs, talks):
        fleet.let_lapse(claim.ticket_id)
        claim.last_sign -= 120
    assert talks.say("still at it")
    claims.renew()
    assert stalled == [hangs]
    assert state(fleet, "run:hangs:1") is TicketState.LOST
    assert state(fleet, "run:talks:1") is TicketState.RUNNING
