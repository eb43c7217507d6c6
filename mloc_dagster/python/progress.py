"""What a caller sees of a run while it runs: bars, a line in a notebook, or calls of a function."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from html import escape
from time import monotonic
from typing import Any

from mloc_dagster.display import Monitor, TaskProgress, View, task_figures, view_for
from mloc_dagster.events import TaskEvent

_EVERY_S = 0.3
"""A notebook is sent no more often what has changed: each time travels to a browser."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a task is.

    Attributes:
        task_id: The task.
        name: Its stage or node.
        done: Rows that are there, or steps that a training has taken.
        total: How many there will be; 0 until that is known.
        errors: Rows of this run that ended with an error.
        seconds_left: Until the last one, as far as speed so far tells; None while it does not.
        ended: Whether all is done, files included.
    """

    task_id: str
    name: str
    done: int
    total: int
    errors: int
    seconds_left: float | None
    ended: bool


OnProgress = Callable[[Progress], None]


class Watch:
    """Shows the progress of one run.

    Args:
        wanted: Whether to show it, or a function that is called instead, in the run's thread.
    """

    def __init__(self, wanted: bool | OnProgress) -> None:
        self._call = wanted if callable(wanted) else None
        self._monitor = Monitor(_view(wanted is True))

    def hear(self, event: TaskEvent) -> None:
        """Takes an event of the run."""
        self._monitor.hear(event)
        if self._call is not None:
            task = self._monitor.tasks[event.task_id]
            done, total, _ = task.done
            self._call(
                Progress(
                    event.task_id, task.node, done, total, task.errors, task.remaining_s(),
                    task.succeeded,
                )
            )  # fmt: skip

    def say(self, message: str) -> None:
        """Shows a line."""
        self._monitor.view.say(message)

    def close(self) -> None:
        """Leaves what is shown as it is."""
        self._monitor.view.close()


def _view(wanted: bool) -> View:
    from rich.console import Console

    notebook = _notebook() if wanted else None
    if notebook is not None:
        return NotebookView(notebook)
    return view_for(Console(stderr=True, highlight=False), wanted=wanted)


def _notebook() -> Callable[[str], Any] | None:
    """Returns what shows HTML in the notebook's cell; None outside of any."""
    with suppress(ImportError):
        from IPython.core.getipython import get_ipython

        shell = get_ipython()
        if shell is not None and hasattr(shell, "kernel"):
            return _Cell().show
    return None


class _Cell:
    """A place in a notebook's cell, which is there when something is shown in it."""

    def __init__(self) -> None:
        self._handle: Any = None

    def show(self, text: str) -> None:
        """Shows HTML instead of what was shown before."""
        from IPython.display import HTML, display

        if self._handle is None:
            self._handle = display(HTML(text), display_id=True)
        else:
            self._handle.update(HTML(text))


class NotebookView:
    """A bar and figures for each task, in the cell that runs it.

    Args:
        show: Shows HTML in place of what was shown before.
    """

    def __init__(self, show: Callable[[str], Any]) -> None:
        self._show = show
        self._tasks: dict[int, TaskProgress] = {}
        self._said: list[str] = []
        self._shown_at = 0.0

    def show(self, task: TaskProgress, event: TaskEvent) -> None:
        """Shows a change, if the last one is long enough ago."""
        self._tasks[id(task)] = task
        if task.succeeded or monotonic() - self._shown_at >= _EVERY_S:
            self._draw()

    def say(self, message: str) -> None:
        """Shows a line that stays."""
        self._said.append(message)
        self._draw()

    def close(self) -> None:
        """Shows the last state."""
        if self._tasks or self._said:
            self._draw()

    def _draw(self) -> None:
        self._shown_at = monotonic()
        lines = [_bar(each) for each in self._tasks.values()]
        self._show("".join(f"<div>{each}</div>" for each in [*map(escape, self._said), *lines]))


def _bar(task: TaskProgress) -> str:
    done, total, unit = task.done
    return (
        f'<code>{escape(task.node)}</code> <progress value="{done}" max="{total or 1}"></progress> '
        f"{done:,}/{total:,} {unit}s <small>{escape(task_figures(task))}</small>"
    )
