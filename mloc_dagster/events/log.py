"""The event log as everyone sees it: written from anywhere, read from any place in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from mloc_dagster.events.model import Event, TaskEvent, WorkerEvent

LOG_LENGTH = 100_000
"""Events that a channel's log keeps, about; at a task a second with ten shards about an hour."""


class Channel(StrEnum):
    """Where events are published; the log of a channel is the stream `<channel>.log`."""

    TASKS = "tasks.events"
    WORKERS = "workers.events"

    @property
    def log(self) -> str:
        """The name of the stream that keeps the channel's events."""
        return f"{self.value}.log"


BEGINNING = "0"
"""The position before the first event that is kept."""


@dataclass(frozen=True, slots=True)
class LoggedEvent:
    """An event and where it lies.

    Attributes:
        channel: Which channel.
        position: What to read on from; grows along a channel.
        event: What happened.
    """

    channel: Channel
    position: str
    event: Event


class EventLog(Protocol):
    """Publishes events and keeps the last ones. One contract suite holds for all of them."""

    def publish(self, event: Event) -> None:
        """Takes an event and returns at once; a fact that is known already adds nothing."""
        ...

    def read(
        self, after: Mapping[Channel, str], *, limit: int = 500, wait_s: float = 0
    ) -> Sequence[LoggedEvent]:
        """Returns events in order, channel by channel.

        Args:
            after: The channels to read, each with the position to go on from.
            limit: Events of a channel at most.
            wait_s: Seconds to wait for the first one when there is none.
        """
        ...

    def close(self) -> None:
        """Hands over what was published so far, as far as that can be done soon."""
        ...


def channel_of(event: Event) -> Channel:
    """Returns where an event is published."""
    return Channel.TASKS if isinstance(event, TaskEvent) else Channel.WORKERS


def known_in(event: Event) -> str:
    """Returns the name of the set of facts in which a second publication is noticed.

    One for each run and worker: the set goes when nothing has happened there for a while.
    """
    about = f"worker:{event.worker_id}" if isinstance(event, WorkerEvent) else event.run_id
    return f"events:known:{about}"


def decode(channel: Channel, data: str | bytes) -> Event:
    """Reads an event as it is on the wire.

    Raises:
        pydantic.ValidationError: If it is not one that this version knows.
    """
    model = TaskEvent if channel is Channel.TASKS else WorkerEvent
    return model.model_validate_json(data)
