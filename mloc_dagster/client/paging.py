"""Calls that follow from each other's answers: paging, and polling tasks until they have ended."""

from __future__ import annotations

import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence

from mloc_dagster.client.transport import Call
from mloc_dagster.errors import TransientError
from mloc_dagster.wire import TaskView

_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 2.0


class Walk[ReplyT, ItemT](ABC):
    """Several calls, one after the other.

    Attributes:
        pause_s: How long to wait before the next one.
    """

    pause_s: float = 0.0

    @abstractmethod
    def call(self) -> Call[ReplyT] | None:
        """Returns the next call; None when there is nothing more to ask."""

    @abstractmethod
    def take(self, reply: ReplyT) -> Iterable[ItemT]:
        """Takes its answer, and returns what it holds."""


class Pages[PageT, ItemT](Walk[PageT, ItemT]):
    """A list, a page at a time.

    Args:
        page: The call for the page at a cursor; None is the first.
        items: A page's entries, and the cursor of the next one; None on the last.
        most: Entries to return; None for all.
    """

    def __init__(
        self,
        page: Callable[[str | None], Call[PageT]],
        items: Callable[[PageT], tuple[Sequence[ItemT], str | None]],
        most: int | None = None,
    ) -> None:
        self._page = page
        self._items = items
        self._left = most
        self._cursor: str | None = None
        self._complete = most == 0

    def call(self) -> Call[PageT] | None:
        """Returns the call for the next page."""
        return None if self._complete else self._page(self._cursor)

    def take(self, reply: PageT) -> Iterable[ItemT]:
        """Returns a page's entries."""
        items, self._cursor = self._items(reply)
        if self._left is not None:
            items = items[: self._left]
            self._left -= len(items)
        self._complete = self._cursor is None or self._left == 0
        return items


class NotEndedError(TransientError):
    """Tasks had not ended when patience ran out; they go on."""


class Waiting(Walk[Sequence[TaskView], TaskView]):
    """Looks at tasks until all have ended.

    Args:
        ids: Of tasks, or of workflows, which stand for all their tasks.
        look: The call that shows what an id stands for.
        timeout_s: Patience; None is endless.
        now: A clock, in seconds.
    """

    def __init__(
        self,
        ids: Iterable[str],
        look: Callable[[str], Call[Sequence[TaskView]]],
        timeout_s: float | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._left = list(dict.fromkeys(ids))
        self._look = look
        self._now = now
        self._deadline = None if timeout_s is None else now() + timeout_s
        self._timeout_s = timeout_s
        self._next_pause_s = _FIRST_PAUSE_S

    def call(self) -> Call[Sequence[TaskView]] | None:
        """Returns the call that shows the first task that had not ended."""
        return self._look(self._left[0]) if self._left else None

    def take(self, reply: Sequence[TaskView]) -> Iterable[TaskView]:
        """Returns tasks that have ended.

        Raises:
            NotEndedError: If patience has run out.
        """
        going = [each for each in reply if not each.status.ended]
        if not going:
            self._left.pop(0)
            self.pause_s, self._next_pause_s = 0.0, _FIRST_PAUSE_S
            return reply
        if self._deadline is not None and self._now() >= self._deadline:
            first = going[0]
            reason = f": {first.waiting_for}" if first.waiting_for else ""
            raise NotEndedError(
                f"{first.task_id} has not ended within {self._timeout_s:g} s:"
                f" {first.status.value}{reason}; it goes on"
            )
        self.pause_s = self._next_pause_s
        self._next_pause_s = min(self._next_pause_s * 1.5, _LONGEST_PAUSE_S)
        return ()


def is_workflow_id(text: str) -> bool:
    """Tells whether an id is one that the tasks of a workflow share: a UUID and nothing more."""
    try:
        return str(uuid.UUID(text)) == text
    except ValueError:
        return False
