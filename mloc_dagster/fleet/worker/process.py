"""The process behind `mloc worker`: takes tickets, runs Dagster steps, sends heartbeats.

It is one process, without a parent that watches it: what a poison row kills is started again by the
supervisor of `mloc up`, or by the first process of a group of workers (`group.py`).
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from queue import SimpleQueue
from types import FrameType

from dagster import DagsterInstance, DagsterRun, EventLogEntry

from mloc_dagster.events import publishing_to_redis
from mloc_dagster.executors import ModelKey, cancellable, model_key_text
from mloc_dagster.fleet.access import fleet_url, open_engine
from mloc_dagster.fleet.claims import Claim, Leases, StopReason, TicketState
from mloc_dagster.fleet.dagster.internals import run_step
from mloc_dagster.fleet.dagster.jobs import LIBRARY, Jobs
from mloc_dagster.fleet.dagster.messages import StepMessage, StepRequest, run_from_text
from mloc_dagster.fleet.dagster.run_worker import RunWorker
from mloc_dagster.fleet.engine import RUNS_QUEUE, FleetEngine, StepTicket, WorkerInfo, WorkerStatus
from mloc_dagster.fleet.hardware import queues_for
from mloc_dagster.fleet.worker.calls import CallServer
from mloc_dagster.fleet.worker.detection import detect_hardware
from mloc_dagster.fleet.worker.heartbeat import Heartbeat, Publish, WorkerRegistry
from mloc_dagster.fleet.worker.models import process_model_cache
from mloc_dagster.services import capturing, open_fleet_instance
from mloc_dagster.settings import settings

_log = logging.getLogger(__name__)

_KEPT_RUNS = 32
_SEND_EVERY_S = 1.0


class StepWorker:
    """Runs one step at a time, and sends its run what Dagster logged.

    The events go through the claim, not into the database: those of a lost claim are rejected, and
    the run alone writes its log.

    Args:
        engine: The fleet.
        instance: Dagster's instance.
        jobs: Jobs that are loaded already; by default its own.
    """

    def __init__(
        self, engine: FleetEngine, instance: DagsterInstance, jobs: Jobs | None = None
    ) -> None:
        self._engine = engine
        self._instance = instance
        self._jobs = jobs or Jobs()
        self._runs: OrderedDict[str, DagsterRun] = OrderedDict()

    def warm_up(self) -> None:
        """Loads what every first step would otherwise wait for."""
        self._jobs.preload(LIBRARY)

    def perform(self, claim: Claim) -> None:
        """Runs the step of a claim to its end, whatever that is."""
        run = self._run(claim.run_id)
        if run is None:
            # The run has ended, and its tickets with it.
            claim.finish(state=TicketState.CANCELLED)
            return
        request = StepRequest.from_text(claim.payload)
        sender = _EventSender(claim)
        try:
            with capturing(sender.add), cancellable(claim.should_stop):
                job = self._jobs.job_of(run)
                run_step(job, run, self._instance, request.step_key, request.known_state)
        except Exception as error:  # noqa: BLE001 (the run decides what follows)
            _log.exception("%s could not be run", claim.ticket_id)
            sender.send(final=True, error=f"{type(error).__name__}: {error}")
            return
        if claim.reason is None or sender.succeeded:
            sender.send(final=True)
        elif claim.reason is StopReason.DRAINING:
            claim.give_back()
        elif claim.reason is StopReason.CANCELLED:
            claim.finish(state=TicketState.CANCELLED)

    def _run(self, run_id: str) -> DagsterRun | None:
        if run_id not in self._runs:
            details = self._engine.run_details(run_id)
            if details is None:
                return None
            self._runs[run_id] = run_from_text(details)
            if len(self._runs) > _KEPT_RUNS:
                self._runs.popitem(last=False)
        return self._runs[run_id]


class _EventSender:
    """Passes the events of a step on: its start at once, the others in batches."""

    def __init__(self, claim: Claim) -> None:
        self._claim = claim
        self._events: list[EventLogEntry] = []
        self._sent_at = time.monotonic()
        self.succeeded = False

    def add(self, entry: EventLogEntry) -> None:
        """Takes one event of the step."""
        event = entry.dagster_event
        self._events.append(entry)
        self.succeeded = self.succeeded or (event is not None and event.is_step_success)
        ending = event is not None and (
            event.is_step_success or event.is_step_failure or event.is_step_up_for_retry
        )
        due = time.monotonic() - self._sent_at > _SEND_EVERY_S
        starting = event is not None and event.is_step_start
        # How a step ends is sent once, together with the end of the claim.
        if (starting or due) and not ending and self._claim.reason is None:
            self.send(final=False)

    def send(self, *, final: bool, error: str = "") -> None:
        """Sends the events that wait; the last message ends the claim."""
        events = tuple(self._events)
        message = StepMessage(self._claim.ticket_id, events, final, error).to_text()
        self._events.clear()
        self._sent_at = time.monotonic()
        if final:
            self._claim.finish(message)
        else:
            self._claim.say(message)


FALLBACK_LOOK_S = 10.0
"""Seconds after which an idle worker looks at its queues though nothing woke it.

Only for a wake that reached a process which died with it, while no run worker lives: a live one
wakes the queues of what waits once a second. Each look is a few commands on Redis."""

_REAP_EVERY_S = 1.0
_PAUSE_S = 1.0
_LAST_LOOK_S = 5.0
_STALLED_EXIT = 75
_INTERRUPTED_EXIT = 128 + signal.SIGINT


class Worker:
    """Takes tickets from its queues, up to `slots` at a time.

    One thread takes; it waits for a wake while a slot is free and no ticket fits, and not while all
    slots are in use: a busy worker must not be woken in the place of an idle one.

    Args:
        engine: The fleet.
        info: Who this worker is, and what it owns.
        perform: Does the work of one claim; gives it back or ends it.
        slots: Claims at a time.
        publish: Told of the worker's own events.
        look_every_s: Seconds between looks at the queues that nothing asked for.
    """

    def __init__(
        self,
        engine: FleetEngine,
        info: WorkerInfo,
        perform: Callable[[Claim], None],
        *,
        slots: int,
        publish: Publish | None = None,
        look_every_s: float = FALLBACK_LOOK_S,
    ) -> None:
        known = settings()
        self._engine = engine
        self._info = info
        self._perform = perform
        self._look_every_s = look_every_s
        leases = Leases(known.lease_ttl_s, known.stall_timeout_s, on_stall=self._give_up)
        self._claims = engine.claims(leases)
        self._registry = WorkerRegistry(engine, publish)
        self.heartbeat = Heartbeat(self._registry, info)
        self._slots = threading.Semaphore(slots)
        self._threads = ThreadPoolExecutor(slots, thread_name_prefix="mloc-work")
        self._stopping = threading.Event()
        self._draining = threading.Event()
        self._taker = threading.Thread(target=self._take_turns, name="mloc-take", daemon=True)
        self._reaper = threading.Thread(target=self._reap, name="mloc-reaper", daemon=True)

    def start(self) -> None:
        """Registers the worker and begins to take work."""
        self.heartbeat.start()
        self.heartbeat.update(status=WorkerStatus.IDLE)
        self._taker.start()
        if RUNS_QUEUE in self._info.queues:
            self._reaper.start()

    def drain(self, grace_s: float) -> None:
        """Takes nothing more; waits `grace_s` for claims to end, then asks them to stop."""
        self._stop_taking()
        self._show()
        held = self._claims.held()
        timer = threading.Timer(grace_s, self._stop_claims)
        timer.daemon = True
        timer.start()
        _log.info("draining: %d claims have %.0f s to end by themselves", len(held), grace_s)

    def close(self) -> None:
        """Ends the worker once its claims have ended, and takes it out of the registry."""
        self._stopping.set()
        self._stop_taking()
        # Without a limit an engine that is away would keep an idle worker from ending.
        self._taker.join(_LAST_LOOK_S)
        self._threads.shutdown(wait=True)
        self._claims.close()
        self.heartbeat.stop()

    def _take_turns(self) -> None:
        while True:
            self._slots.acquire()
            claim = self._next_claim()
            if claim is None:
                self._claims.pass_on()
                return
            if self._draining.is_set():
                claim.give_back()
                self._claims.drop(claim)
                return
            self._threads.submit(self._work, claim)

    def _next_claim(self) -> Claim | None:
        """Returns a claim as soon as there is one; None once the worker drains."""
        me = self._info
        while not self._draining.is_set():
            try:
                warm = self.heartbeat.info.warm_models
                claim = self._claims.take(me.queues, me.worker_id, me.hardware, warm)
                if claim is not None:
                    return claim
                self._claims.wait(me.queues, me.worker_id, self._look_every_s)
            except Exception as error:  # noqa: BLE001 (this thread must outlive anything)
                _log.warning("could not look for work: %s", error)
                self._draining.wait(_PAUSE_S)
        return None

    def _work(self, claim: Claim) -> None:
        try:
            self._show()
            self._perform(claim)
        except Exception:  # noqa: BLE001 (it is logged, and the worker goes on)
            # The lease lapses and somebody else tries: the worker's trouble is not the ticket's.
            _log.exception("ticket %s is left to lapse", claim.ticket_id)
        finally:
            self._claims.drop(claim)
            self._show()
            self._slots.release()

    def _show(self) -> None:
        running = [claim.ticket_id for claim in self._claims.held()]
        busy = WorkerStatus.RUNNING if running else WorkerStatus.IDLE
        status = WorkerStatus.DRAINING if self._draining.is_set() else busy
        self.heartbeat.update(status=status, running=running)

    def _stop_taking(self) -> None:
        self._draining.set()
        self._claims.end_wait(self._info.worker_id)

    def _stop_claims(self) -> None:
        for claim in self._claims.held():
            claim.ask_to_stop(StopReason.DRAINING)

    def _reap(self) -> None:
        while not self._stopping.wait(_REAP_EVERY_S):
            try:
                _requeue_lapsed_runs(self._engine)
                self._registry.lost()
                # Shards that wait have a run that does this for them; a waiting run has nobody.
                if self._engine.waiting(RUNS_QUEUE):
                    self._engine.wake(RUNS_QUEUE)
            except Exception as error:  # noqa: BLE001 (this thread must outlive anything)
                _log.warning("could not look after lost workers: %s", error)

    def _give_up(self, claim: Claim) -> None:
        _log.error(
            "%s has shown no sign of life for %.0f s: this process ends, another takes the ticket",
            claim.ticket_id,
            settings().stall_timeout_s,
        )
        # A thread cannot be ended, and what hangs may hold the devices.
        os._exit(_STALLED_EXIT)


def _requeue_lapsed_runs(engine: FleetEngine) -> None:
    """Queues those runs anew whose run worker fell silent.

    Only runs need this: a shard's ticket is looked after by its run.
    """
    for status in engine.lapsed(RUNS_QUEUE):
        _log.warning("%s: %s; it goes to another worker", status.ticket_id, status.why)
        run_id = status.ticket_id.partition(":")[0]
        engine.submit(StepTicket(ticket_id=status.ticket_id, run_id=run_id, queue=RUNS_QUEUE))


def worker_info(queues: tuple[str, ...], tags: Mapping[str, str]) -> WorkerInfo:
    """Returns who this process is.

    Args:
        queues: Where it takes work from; empty for what its hardware names.
        tags: Free labels.
    """
    hardware = detect_hardware()
    now = datetime.now(UTC)
    return WorkerInfo(
        worker_id=settings().worker_name or f"{socket.gethostname()}-{os.getpid()}",
        host=socket.gethostname(),
        pid=os.getpid(),
        queues=queues or queues_for(hardware),
        hardware=hardware,
        tags=dict(tags),
        started_at=now,
        last_seen=now,
    )


def run_worker_process(queues: tuple[str, ...], tags: Mapping[str, str]) -> None:
    """Runs one worker of this machine; see `work_until_stopped`.

    Args:
        queues: Where it takes work from; empty for what its hardware names.
        tags: Free labels.
    """
    engine = open_engine()
    info = worker_info(queues, tags)
    runs = RUNS_QUEUE in info.queues
    with (
        open_fleet_instance() as instance,
        publishing_to_redis(fleet_url(), worker_id=info.worker_id) as publisher,
    ):
        perform = RunWorker(engine, instance) if runs else StepWorker(engine, instance)
        perform.warm_up()
        worker = Worker(
            engine,
            info,
            perform.perform,
            slots=settings().run_slots if runs else 1,
            publish=None if publisher is None else publisher.publish,
        )
        if runs:
            work_until_stopped(worker)
            return
        models = process_model_cache()
        models.on_change = lambda keys: worker.heartbeat.update(warm_models=_texts(keys))
        with CallServer(engine, info.worker_id, models):
            work_until_stopped(worker)


def _texts(keys: tuple[ModelKey, ...]) -> list[str]:
    return [model_key_text(key) for key in keys]


def work_until_stopped(worker: Worker) -> None:
    """Works until SIGTERM or SIGINT; SIGINT after one of them ends the process at once.

    A second SIGTERM changes nothing: whoever stops a group may send it to each process as well.
    Belongs into the main thread, as signal handlers do.
    """
    # Unlike an Event's, its `put` may interrupt its own `get`, as a signal handler does.
    came: SimpleQueue[int] = SimpleQueue()

    def hear(signum: int, frame: FrameType | None) -> None:
        if signum == signal.SIGINT and stopping:
            # The leases lapse; training's processes end with this one, by their pipes.
            os._exit(_INTERRUPTED_EXIT)
        came.put(signum)

    stopping = False
    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, hear)
    worker.start()
    came.get()
    stopping = True
    worker.drain(settings().drain_grace_s)
    worker.close()
