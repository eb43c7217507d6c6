"""A ticket that a worker has taken, whichever engine it came from."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Sequence
from enum import StrEnum
from typing import Protocol

from mloc_dagster.fleet.engine import TicketState
from mloc_dagster.fleet.hardware import Hardware
from mloc_dagster.fleet.placement import Waiting


class StopReason(StrEnum):
    """Why a claim should end before its work is done."""

    CANCELLED = "cancelled"
    LOST = "lost"
    DRAINING = "draining"


class Claim:
    """A ticket that this process has taken.

    Args:
        waiting: The ticket as it was found.
        run_id: Its run.
        payload: What its sender wrote.
        fence: The token that makes the claim's words count.
        publish: Takes a message ('' for none) and the ticket's next state, at one moment; false
            when the claim is lost and nothing was said.

    Attributes:
        ticket_id: The ticket.
        run_id: Its run.
        queue: Where it was taken from.
        payload: What the ticket's sender wrote.
        fence: The token that makes its words count.
        stop: Set once the work should end early.
        reason: Why, once `stop` is set.
        held_at: When the fleet last said that the claim is held, by `time.monotonic`.
    """

    def __init__(
        self,
        waiting: Waiting,
        run_id: str,
        payload: str,
        fence: int,
        publish: Callable[[Claim, str, TicketState], bool],
    ) -> None:
        self.ticket_id = waiting.ticket_id
        self.run_id = run_id
        self.queue = waiting.queue
        self.payload = payload
        self.fence = fence
        self.stop = threading.Event()
        self.reason: StopReason | None = None
        self.last_sign = time.monotonic()
        self.held_at = time.monotonic()
        self._publish = publish

    def ask_to_stop(self, reason: StopReason) -> None:
        """Asks the work to end; the first reason stays, but for the loss of the claim."""
        if self.reason is None or reason is StopReason.LOST:
            self.reason = reason
        self.stop.set()

    def should_stop(self) -> bool:
        """Returns whether to stop; asking is a sign of life, as is whatever it says."""
        self.last_sign = time.monotonic()
        return self.stop.is_set()

    def is_held(self, lease_ttl_s: float) -> bool:
        """Returns whether the claim is held; asks when nothing was heard for a lease.

        A process that was paused goes on as if no time had passed, and would act on a claim that
        somebody else has taken since.
        """
        if self.reason is StopReason.LOST:
            return False
        return time.monotonic() - self.held_at < lease_ttl_s or self.say("")

    def say(self, message: str) -> bool:
        """Puts a message into the run's inbox and keeps the claim; false when it is lost."""
        return self._say(message, TicketState.RUNNING)

    def finish(self, message: str = "", state: TicketState = TicketState.DONE) -> bool:
        """Ends the claim, with a last message; false when it was lost and nothing was said."""
        return self._say(message, state)

    def give_back(self) -> bool:
        """Puts the ticket back at its place in the queue."""
        return self._say("", TicketState.QUEUED)

    def _say(self, message: str, state: TicketState) -> bool:
        self.last_sign = time.monotonic()
        asked_at = time.monotonic()
        heard = self._publish(self, message, state)
        if heard:
            self.held_at = asked_at
        else:
            self.ask_to_stop(StopReason.LOST)
        return heard


class TicketClaims(Protocol):
    """A worker's side of a `FleetEngine`. One contract suite holds for every implementation."""

    def take(
        self, queues: Sequence[str], worker_id: str, hardware: Hardware, warm: Collection[str]
    ) -> Claim | None:
        """Takes the best ticket that waits, if any; see `placement.choose`."""
        ...

    def wait(self, queues: Sequence[str], worker_id: str, timeout_s: float) -> bool:
        """Blocks until `take` may find something; false when nothing came within `timeout_s`.

        A ticket that is queued after the last `take` ends it, whether before or after its begin:
        that of one worker which waits for its queue, and that of a worker which it is kept for or,
        where others found that they cannot take it, of each that can.
        """
        ...

    def held(self) -> Sequence[Claim]:
        """Returns what this worker has taken and not dropped."""
        ...

    def renew(self) -> None:
        """Keeps the leases alive; asks claims to stop that are lost or cancelled."""
        ...

    def drop(self, claim: Claim) -> None:
        """Forgets a claim that has ended."""
        ...
