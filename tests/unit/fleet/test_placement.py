"""Who should take a ticket, and what people are told while nobody does."""

from __future__ import annotations

from datetime import UTC, datetime

from mloc_dagster.fleet.engine import RUNS_QUEUE, StepTicket, WorkerInfo, WorkerStatus
from mloc_dagster.fleet.hardware import Hardware, Requirements, queues_for
from mloc_dagster.fleet.placement import (
    WARM_PATIENCE_S,
    Waiting,
    choose,
    preferred_worker,
    suited_workers,
    why_waiting,
)

SMALL = Hardware(cpus=2, memory_bytes=4 << 30)
NOW = 1000.0


def worker(name: str, hardware: Hardware = SMALL, **changes: object) -> WorkerInfo:
    moment = datetime.now(UTC)
    known = WorkerInfo(
        worker_id=name,
        host="node",
        pid=7,
        status=WorkerStatus.IDLE,
        queues=queues_for(hardware),
        hardware=hardware,
        started_at=moment,
        last_seen=moment,
    )
    return known.model_copy(update=changes)


def waiting(name: str, **changes: object) -> Waiting:
    known = {
        "queue": "cpu",
        "requirements": Requirements(),
        "model_key": "",
        "prefer": "",
        "priority": 0,
        "submitted_at": NOW,
    }
    return Waiting(ticket_id=name, **{**known, **changes})  # type: ignore[arg-type]


def chosen(*tickets: Waiting, name: str = "w1", warm: tuple[str, ...] = ()) -> list[str]:
    return [each.ticket_id for each in choose(tickets, name, SMALL, warm, NOW)]


def test_tickets_go_in_the_order_of_their_queue() -> None:
    assert chosen(waiting("a"), waiting("b", model_key="m")) == ["a", "b"]


def test_what_does_not_fit_is_left_out() -> None:
    assert chosen(waiting("a", requirements=Requirements(cpus=8)), waiting("b")) == ["b"]


def test_what_is_kept_for_another_worker_is_left_to_it_for_a_moment() -> None:
    assert chosen(waiting("a", prefer="w2"), waiting("b")) == ["b"]
    assert chosen(waiting("a", prefer="w2"), name="w2") == ["a"]
    before = NOW - WARM_PATIENCE_S - 0.1
    assert chosen(waiting("a", prefer="w2", submitted_at=before), waiting("b")) == ["a", "b"]


def test_a_warm_model_goes_first_only_while_nobody_waits_long_for_another() -> None:
    cold = waiting("cold", model_key="m2")
    warm = waiting("warm", model_key="m1")
    assert chosen(cold, warm, warm=("m1",)) == ["warm", "cold"]
    old = waiting("old", model_key="m2", submitted_at=NOW - WARM_PATIENCE_S - 0.1)
    assert chosen(old, warm, warm=("m1",)) == ["old", "warm"]


def test_a_warm_model_does_not_outdo_a_priority() -> None:
    urgent = waiting("urgent", model_key="m2", priority=1)
    assert chosen(urgent, waiting("warm", model_key="m1"), warm=("m1",)) == ["urgent", "warm"]


def test_a_ticket_prefers_an_idle_worker_that_fits_and_has_its_model() -> None:
    asked = StepTicket(
        ticket_id="t", run_id="r", queue="cpu", model_key="m", requirements=Requirements(cpus=4)
    )
    large = Hardware(cpus=8, memory_bytes=4 << 30)
    busy = worker("busy", large, warm_models=("m",), status=WorkerStatus.RUNNING)
    small, cold = worker("small", warm_models=("m",)), worker("cold", large)
    first, second = (worker(name, large, warm_models=("m",)) for name in ("first", "second"))
    fleet = [busy, small, cold, first, second]
    assert preferred_worker(asked, fleet, promised=()) == "first"
    assert preferred_worker(asked, fleet, promised={"first"}) == "second"
    assert preferred_worker(asked, fleet, promised={"first", "second"}) is None
    without = asked.model_copy(update={"model_key": None})
    assert preferred_worker(without, fleet, promised=()) is None


def test_a_ticket_that_some_worker_could_take_waits_for_a_free_one() -> None:
    workers = [worker("w1"), worker("w2"), worker("r1", queues=(RUNS_QUEUE,))]
    why, satisfiable = why_waiting("cpu", Requirements(cpus=1), workers)
    assert (why, satisfiable) == ("the 2 workers that fit are busy", True)


def test_a_ticket_that_nobody_could_take_says_why_of_each_worker() -> None:
    workers = [worker(f"w{each}") for each in range(5)]
    why, satisfiable = why_waiting("cpu", Requirements(cpus=3), workers)
    assert not satisfiable
    assert why.startswith("no live worker fits (w0: needs 3 cores, has 2; w1: ")
    assert why.endswith("; 2 more)")


def test_a_worker_of_other_queues_is_no_help_though_it_fits() -> None:
    why, satisfiable = why_waiting("cpu", Requirements(), [worker("w1", queues=("special",))])
    assert (why, satisfiable) == ("no live worker fits (w1: takes special, not cpu)", False)


def test_runs_and_shards_wait_for_workers_of_their_own() -> None:
    run_worker, shard_worker = worker("r1", queues=(RUNS_QUEUE,)), worker("w1")
    needs = Requirements()
    assert why_waiting("cpu", needs, [run_worker]) == ("no worker is alive", False)
    assert why_waiting(RUNS_QUEUE, needs, [shard_worker]) == ("no run worker is alive", False)
    assert why_waiting(RUNS_QUEUE, needs, [run_worker]) == ("every run worker is busy", True)


def test_a_call_goes_where_the_model_is_and_nobody_else_waits() -> None:
    large = Hardware(cpus=8, memory_bytes=64 << 30)
    running = {"status": WorkerStatus.RUNNING}
    workers = [
        worker("cold-busy", **running),
        worker("cold"),
        worker("warm-busy", warm_models=("m1",), **running),
        worker("warm-asked", warm_models=("m1",)),
        worker("warm", warm_models=("m1",)),
        worker("drains", warm_models=("m1",), status=WorkerStatus.DRAINING),
        worker("runs", warm_models=("m1",), queues=(RUNS_QUEUE,)),
    ]
    open_calls = {"warm-asked": 1}
    suited = suited_workers(workers, "m1", Requirements(), open_calls)
    assert suited == ["warm", "warm-asked", "warm-busy", "cold", "cold-busy"]
    needs = Requirements(cpus=4)
    assert suited_workers([*workers, worker("large", large)], "m1", needs, {}) == ["large"]
