"""Tickets: how an op's tags become one, and how a run watches those it submitted."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from dagster import DagsterRun

from mloc_dagster.fleet.claims import TicketState
from mloc_dagster.fleet.dagster.internals import ExecutionStep
from mloc_dagster.fleet.dagster.messages import Requeue, StepRequest
from mloc_dagster.fleet.engine import RUNS_QUEUE, FleetEngine, StepTicket, TicketStatus
from mloc_dagster.fleet.hardware import Requirements, queue_of
from mloc_dagster.schema import Retries
from mloc_dagster.services import PRIORITY_TAG
from mloc_dagster.settings import settings

REQUIREMENTS_TAG = ".dagster/mloc_requirements"
"""JSON of `Requirements`; an op without it runs inside the run worker."""

MODEL_TAG = ".dagster/mloc_model_key"
"""The model that the op's steps need."""

RETRIES_TAG = ".dagster/mloc_retries"
"""JSON of `Retries`, for attempts whose worker could not tell Dagster how they ended.

Not Dagster's retry policy: where an op has one, Dagster retries a step that Ctrl-C interrupted.
"""

# Beyond this the places within a priority would blur in Redis' floating-point scores.
_MAX_PRIORITY = 100_000


def fleet_tags(
    requirements: Requirements, model_key: str | None, retries: Retries | None = None
) -> dict[str, str]:
    """Returns the tags that send an op's steps to workers."""
    tags = {REQUIREMENTS_TAG: requirements.model_dump_json()}
    if retries is not None:
        tags[RETRIES_TAG] = retries.model_dump_json()
    return tags if model_key is None else {**tags, MODEL_TAG: model_key}


def tags_of_step(step: Mapping[str, str] | None, run: Mapping[str, str]) -> Mapping[str, str]:
    """Returns what holds for a step: its op's tags, or those of its run where it has the same.

    An op that belongs on the fleet and serves runs of many kinds cannot know what each needs.
    """
    own = step or {}
    if REQUIREMENTS_TAG not in own:
        return own
    known = (REQUIREMENTS_TAG, MODEL_TAG, RETRIES_TAG)
    return {**own, **{name: run[name] for name in known if name in run}}


def requirements_of_step(tags: Mapping[str, str]) -> Requirements | None:
    """Returns what a step needs of its worker; None for a step of the run itself."""
    text = tags.get(REQUIREMENTS_TAG)
    return None if text is None else Requirements.model_validate_json(text)


def retries_of_step(tags: Mapping[str, str]) -> Retries | None:
    """Returns how often a step is tried again; None where its op says nothing."""
    text = tags.get(RETRIES_TAG)
    return None if text is None else Retries.model_validate_json(text)


def ticket_for(
    run: DagsterRun,
    step: ExecutionStep,
    request: StepRequest,
    attempt: int,
    requirements: Requirements,
) -> StepTicket:
    """Returns the ticket of an attempt at a step; the same attempt has the same id."""
    return StepTicket(
        ticket_id=f"{run.run_id}:{step.key}:{attempt}",
        run_id=run.run_id,
        queue=queue_of(requirements),
        requirements=requirements,
        priority=priority_of(run),
        model_key=tags_of_step(step.tags, run.tags).get(MODEL_TAG),
        payload=request.to_text(),
    )


def run_ticket(run: DagsterRun) -> StepTicket:
    """Returns the ticket of a run itself, for run workers."""
    return StepTicket(
        ticket_id=run_ticket_id(run.run_id),
        run_id=run.run_id,
        queue=RUNS_QUEUE,
        priority=priority_of(run),
    )


def priority_of(run: DagsterRun) -> int:
    """Returns `dagster/priority` of a run: what let it leave Dagster's queue early counts on."""
    try:
        priority = int(run.tags.get(PRIORITY_TAG, "0"))
    except ValueError:
        return 0
    return max(-_MAX_PRIORITY, min(priority, _MAX_PRIORITY))


def run_ticket_id(run_id: str) -> str:
    """Returns the id of a run's own ticket."""
    return f"{run_id}:run"


_LOOK_EVERY_S = 1.0
_SAY_AFTER_S = 3.0
_MAX_LOSSES = 3


@dataclass(frozen=True, slots=True)
class Finding:
    """Something about a ticket that belongs into its step's log.

    Attributes:
        step_key: The step.
        text: What to say.
        fatal: Whether this attempt is over and failed.
        retry: Whether another attempt, if the step has one left, may help.
        requeue: Set when the step was taken from a lost worker and goes to another one.
    """

    step_key: str
    text: str
    fatal: bool = False
    retry: bool = True
    requeue: Requeue | None = None


@dataclass(slots=True)
class _Followed:
    ticket: StepTicket
    since: float
    unsatisfiable_since: float | None = None
    said: str = ""
    silent_ends: int = 0


class TicketWatch:
    """The outstanding tickets of one run, looked at once a second.

    Args:
        engine: Carries them.
        run_id: The run.
        clock: The time in seconds.
    """

    def __init__(
        self, engine: FleetEngine, run_id: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._engine = engine
        self._run_id = run_id
        self._clock = clock
        self._followed: dict[str, _Followed] = {}
        self._steps: dict[str, str] = {}
        self._losses: dict[str, int] = {}
        self._looked_at = clock()

    def follow(self, step_key: str, ticket: StepTicket) -> StepTicket:
        """Watches a ticket that is about to be submitted; returns it."""
        self._followed[step_key] = _Followed(ticket, self._clock())
        self._steps[ticket.ticket_id] = step_key
        return ticket

    def forget(self, step_key: str) -> None:
        """Stops watching the ticket of a step."""
        followed = self._followed.pop(step_key, None)
        if followed is not None:
            del self._steps[followed.ticket.ticket_id]

    def step_of(self, ticket_id: str) -> str | None:
        """Returns the step of an outstanding ticket."""
        return self._steps.get(ticket_id)

    def unlapsed(self, tickets: Sequence[StepTicket]) -> list[StepTicket]:
        """Returns those of some followed tickets with which no worker was lost.

        The others are for the next look, which tells of them.
        """
        statuses = self._engine.status([each.ticket_id for each in tickets])
        return [each for each in tickets if not _is_lapsed(statuses[each.ticket_id])]

    def look(self) -> Iterator[Finding]:
        """Yields what is new, and sends lost tickets out again, once a second at most."""
        if not self._followed or self._clock() - self._looked_at < _LOOK_EVERY_S:
            return
        self._looked_at = self._clock()
        statuses = self._engine.status(list(self._steps))
        waiting: set[str] = set()
        for ticket_id, status in statuses.items():
            step_key = self._steps.get(ticket_id)
            if step_key is not None:
                if status.state is TicketState.QUEUED:
                    waiting.add(self._followed[step_key].ticket.queue)
                yield from self._judge(step_key, self._followed[step_key], status)
        for queue in waiting:
            # The worker that the ticket woke may have died before it took it.
            self._engine.wake(queue)

    def _judge(self, step_key: str, followed: _Followed, status: TicketStatus) -> Iterator[Finding]:
        match status.state:
            case TicketState.LOST:
                yield self._lost(step_key, followed, status)
            case TicketState.QUEUED:
                yield from self._waiting(step_key, followed, status)
            case TicketState.DONE | TicketState.CANCELLED:
                # Its last message is read before the next look, unless it never came.
                followed.silent_ends += 1
                if followed.silent_ends > 1:
                    self._engine.forget(followed.ticket.ticket_id)
                    self._engine.submit(followed.ticket)
                    followed.silent_ends = 0
            case TicketState.RUNNING:
                followed.unsatisfiable_since = None

    def _lost(self, step_key: str, followed: _Followed, status: TicketStatus) -> Finding:
        # A record that is gone says nothing against the worker. One that is there also knows of
        # what an earlier run worker saw.
        known = max(self._losses.get(step_key, 0), status.losses)
        losses = self._losses[step_key] = known + (status.worker_id is not None)
        if losses >= _MAX_LOSSES and status.worker_id is not None:
            self.forget(step_key)
            self._engine.forget(followed.ticket.ticket_id)
            return Finding(
                step_key, f"{status.why}; {losses} workers were lost with this shard", fatal=True
            )
        self._engine.submit(followed.ticket)
        if status.worker_id is None:
            return Finding(step_key, f"{status.why}; the shard is queued anew")
        requeue = Requeue(status.worker_id, status.losses + 1)
        text = f"{status.why}; the shard goes to another worker"
        return Finding(step_key, text, requeue=requeue)

    def _waiting(
        self, step_key: str, followed: _Followed, status: TicketStatus
    ) -> Iterator[Finding]:
        now = self._clock()
        if status.satisfiable:
            followed.unsatisfiable_since = None
        elif followed.unsatisfiable_since is None:
            followed.unsatisfiable_since = now
        elif now - followed.unsatisfiable_since > settings().unsatisfiable_timeout_s:
            self._engine.cancel(followed.ticket.ticket_id)
            self.forget(step_key)
            waited = now - followed.unsatisfiable_since
            why = f"gave up after {waited:.0f} s: {status.why}"
            yield Finding(step_key, why, fatal=True, retry=False)
            return
        if status.why != followed.said and now - followed.since > _SAY_AFTER_S:
            followed.said = status.why
            yield Finding(step_key, f"waiting: {status.why}")

    def cancel_all(self) -> None:
        """Cancels every outstanding ticket."""
        for ticket_id in self._steps:
            self._engine.cancel(ticket_id)

    def any_running(self) -> bool:
        """Returns whether some worker still works on a ticket of the run."""
        statuses = self._engine.status(list(self._steps))
        return any(each.state is TicketState.RUNNING for each in statuses.values())


def _is_lapsed(status: TicketStatus) -> bool:
    return status.state is TicketState.LOST and status.worker_id is not None
