"""Tickets that a worker has taken, whichever engine they came from, and the leases on them."""

from __future__ import annotations

import logging
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from enum import StrEnum

from mloc_dagster.errors import FleetUnavailableError
from mloc_dagster.fleet.hardware import Hardware

_log = logging.getLogger(__name__)

_LONGEST_INTERVAL_S = 1.0


class TicketState(StrEnum):
    """Where a ticket stands."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    CANCELLED = "cancelled"
    LOST = "lost"


class StopReason(StrEnum):
    """Why a claim should end before its work is done."""

    CANCELLED = "cancelled"
    LOST = "lost"
    DRAINING = "draining"


class Claim:
    """A ticket that this process has taken.

    Args:
        ticket_id: The ticket.
        run_id: Its run.
        queue: Where it was taken from.
        payload: What its sender wrote.
        fence: The token that makes the claim's words count.
        publish: Takes a message ('' for none) and the ticket's next state, at one moment; false
            when the claim is lost and nothing was said.

    Attributes:
        stop: Set once the work should end early.
        reason: Why, once `stop` is set.
        last_sign: When the work last gave a sign of life, by `time.monotonic`.
        held_at: When the fleet last said that the claim is held, by `time.monotonic`.
    """

    def __init__(
        self,
        ticket_id: str,
        run_id: str,
        queue: str,
        payload: str,
        fence: int,
        publish: Callable[[Claim, str, TicketState], bool],
    ) -> None:
        self.ticket_id = ticket_id
        self.run_id = run_id
        self.queue = queue
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
        another worker has taken since.
        """
        if self.reason is StopReason.LOST:
            return False
        return time.monotonic() - self.held_at < lease_ttl_s or self.say("")

    def say(self, message: str) -> bool:
        """Puts a message into the run's mailbox and keeps the claim; false when it is lost."""
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


@dataclass(frozen=True, slots=True)
class Leases:
    """How the claims of a process are kept.

    Attributes:
        ttl_s: How long the fleet waits for a sign of life.
        stall_timeout_s: How long the work itself may show none.
        on_stall: Called with a claim whose work hangs, once its lease is left to lapse.
    """

    ttl_s: float
    stall_timeout_s: float
    on_stall: Callable[[Claim], None]


class TicketClaims(ABC):
    """A worker process's side of a `FleetEngine`: all the tickets that it has taken.

    What is here holds for every engine; one implements how tickets are taken and waited for, and
    how their leases are renewed.

    Args:
        leases: How claims are kept.
    """

    def __init__(self, leases: Leases) -> None:
        self._leases = leases
        self._held: dict[str, Claim] = {}
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._keeper = threading.Thread(target=self._keep, name="mloc-leases", daemon=True)
        self._keeper.start()

    @abstractmethod
    def take(
        self, queues: Sequence[str], worker_id: str, hardware: Hardware, warm: Collection[str]
    ) -> Claim | None:
        """Takes the best ticket that waits, if any; see `placement.choose`.

        Where it finds tickets that need other hardware it wakes the workers that have it.
        """

    @abstractmethod
    def wait(self, queues: Sequence[str], worker_id: str, timeout_s: float) -> bool:
        """Blocks until `take` may find something; false when nothing came within `timeout_s`.

        A ticket that is queued after the last `take` ends it, whether before or after its begin:
        that of one worker which waits for its queue, and that of a worker which it is kept for or,
        where others found that they cannot take it, of each that can. One thread of a process may
        wait at a time.
        """

    @abstractmethod
    def end_wait(self, worker_id: str) -> None:
        """Ends a wait of this process from another thread."""

    @abstractmethod
    def pass_on(self) -> None:
        """Gives what woke this worker last to another one, if it was meant for any."""

    @abstractmethod
    def _renew(self, claims: Sequence[Claim]) -> Sequence[StopReason | None]:
        """Keeps leases alive; returns why each claim should end, if it should."""

    def held(self) -> Sequence[Claim]:
        """Returns what this process has taken and not dropped."""
        with self._lock:
            return tuple(self._held.values())

    def drop(self, claim: Claim) -> None:
        """Forgets a claim that has ended."""
        with self._lock:
            self._held.pop(claim.ticket_id, None)

    def renew(self) -> None:
        """Keeps the leases alive; asks claims to stop that are lost or cancelled."""
        live: list[Claim] = []
        for claim in self.held():
            if time.monotonic() - claim.last_sign < self._leases.stall_timeout_s:
                live.append(claim)
            else:
                self._leases.on_stall(claim)
        if not live:
            return
        asked_at = time.monotonic()
        for claim, reason in zip(live, self._renew(live), strict=True):
            if reason is not None:
                claim.ask_to_stop(reason)
            if reason is not StopReason.LOST:
                claim.held_at = asked_at

    def close(self) -> None:
        """Ends the thread that keeps leases alive; what is still held lapses."""
        self._closed.set()
        self._keeper.join()

    def _hold(self, claim: Claim) -> Claim:
        with self._lock:
            self._held[claim.ticket_id] = claim
        return claim

    def _keep(self) -> None:
        interval_s = min(self._leases.ttl_s / 4, _LONGEST_INTERVAL_S)
        while not self._closed.wait(interval_s):
            try:
                self.renew()
            except FleetUnavailableError as error:
                # A lease that lapses meanwhile comes back unless the work was given to another one.
                _log.warning("leases are not renewed: %s", error)
