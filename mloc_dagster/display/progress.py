"""What a person sees of a run while it runs: bars on a terminal, a few lines elsewhere."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Protocol

from rich.cells import cell_len
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TaskID,
    TextColumn,
)
from rich.text import Text

from mloc_dagster.display.tables import count, shorten
from mloc_dagster.display.task_progress import TaskProgress, task_figures
from mloc_dagster.events import TaskEvent, TaskEventType, listening
from mloc_dagster.planning import shard_key

LINE_INTERVAL_S = 10.0

ROOMY = 110
"""From so many columns on a terminal has room for a bar beside the figures."""


class View(Protocol):
    """Shows the progress of tasks."""

    def show(self, task: TaskProgress, event: TaskEvent) -> None:
        """Takes note of a change."""
        ...

    def say(self, message: str) -> None:
        """Prints a line that stays."""
        ...

    def close(self) -> None:
        """Ends the display; may be called again."""
        ...


class Monitor:
    """Hears the events of a run and tells its view.

    Attributes:
        tasks: What is known, by task id, in order of starting.
        run_id: The Dagster run, once a task has started.
    """

    def __init__(self, view: View) -> None:
        self.view = view
        self.tasks: dict[str, TaskProgress] = {}
        self._lock = threading.Lock()

    def hear(self, event: TaskEvent) -> None:
        """Takes one event."""
        with self._lock:
            task = self.tasks.setdefault(event.task_id, TaskProgress(event.node))
            task.take(event)
        if event.type is TaskEventType.SHARD_FAILED and event.shard is not None:
            self.view.say(
                f"{event.node}: attempt {event.attempt} at shard {shard_key(event.shard.index)} of "
                f"{event.shard.total} failed: {shorten(event.error or '', 300)}"
            )
        elif event.type is TaskEventType.TASK_PROGRESS and event.payload.reason:
            self.view.say(f"{event.node}: {event.payload.reason}")
        self.view.show(task, event)


@contextmanager
def monitoring(view: View) -> Iterator[Monitor]:
    """Shows what happens in this process on `view` until the block ends."""
    monitor = Monitor(view)
    try:
        with listening(monitor.hear):
            yield monitor
    finally:
        view.close()


def view_for(console: Console, *, wanted: bool) -> View:
    """Returns bars for a terminal, lines for anything else, and silence when unwanted."""
    if not wanted:
        return SilentView()
    return BarsView(console) if console.is_terminal else LinesView(console)


class SilentView:
    """Shows nothing."""

    def show(self, task: TaskProgress, event: TaskEvent) -> None:
        """Shows nothing."""

    def say(self, message: str) -> None:
        """Says nothing."""

    def close(self) -> None:
        """Has nothing to end."""


class LinesView:
    """A line when a task starts, one now and then, and one for each failed attempt."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._next_line_s = 0.0

    def show(self, task: TaskProgress, event: TaskEvent) -> None:
        """Prints a line if the last one is long enough ago."""
        if event.type is TaskEventType.TASK_STARTED:
            self._next_line_s = monotonic() + LINE_INTERVAL_S
            self.say(f"{task.node}: {count(task.total_rows, 'row')}")
        elif monotonic() >= self._next_line_s and event.type is TaskEventType.TASK_PROGRESS:
            self._next_line_s = monotonic() + LINE_INTERVAL_S
            done, total, unit = task.done
            self.say(f"{task.node}: {done:,}/{total:,} {unit}s · {task_figures(task)}")

    def say(self, message: str) -> None:
        """Prints a line."""
        self._console.print(message, markup=False, soft_wrap=True)

    def close(self) -> None:
        """Has nothing to end."""


class BarsView:
    """A line for each task, and a pulse while Dagster and its database start."""

    def __init__(self, console: Console) -> None:
        roomy = console.width >= ROOMY
        self._name_width = 24 if roomy else 12
        self._names_unit = console.width >= ROOMY + 30
        # A narrow terminal has room for the figures or for a bar.
        bar = (BarColumn(bar_width=12),) if roomy else ()
        self._figures = _FiguresColumn(console, 2 + (13 if roomy else 0))
        self._progress = Progress(
            SpinnerColumn(finished_text="[green]✓[/]"),
            TextColumn("{task.description}", markup=False),
            *bar,
            TextColumn("{task.fields[rows]}", markup=False, justify="right"),
            self._figures,
            console=console,
            refresh_per_second=8,
            # Everyone else writes into the log; rich would fetch it back.
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._bars: dict[int, TaskID] = {}
        self._starting: TaskID | None = self._progress.add_task(
            "starting", total=None, rows="", progress=None
        )
        self._progress.start()

    def show(self, task: TaskProgress, event: TaskEvent) -> None:
        """Moves the task's bar."""
        if self._starting is not None:
            self._progress.remove_task(self._starting)
            self._starting = None
        name = shorten(task.node, self._name_width)
        count_done, total, unit = task.done
        named = f" {unit}s" if self._names_unit or unit == "step" else ""
        rows = f"{count_done:,}/{total:,}{named}"
        self._figures.make_room(f"{name} {rows} ")
        bar = self._bars.get(id(task))
        if bar is None:
            bar = self._progress.add_task(name, total=total or None, rows="", progress=task)
            self._bars[id(task)] = bar
        # A bar that is full looks done; the files are still to be written.
        done = total if task.succeeded else min(count_done, total - 0.01)
        self._progress.update(bar, total=total or None, completed=done, rows=rows)

    def say(self, message: str) -> None:
        """Prints a line above the bars."""
        self._progress.console.print(message, markup=False, style="yellow", soft_wrap=True)

    def close(self) -> None:
        """Leaves the bars as they are."""
        if self._starting is not None:
            self._progress.remove_task(self._starting)
            self._starting = None
        self._progress.stop()


class _FiguresColumn(ProgressColumn):
    """Figures that go on changing while nothing happens: a stall is seen as one.

    Args:
        console: Its width is what there is.
        taken: Characters of the line that spinner and bar take.
    """

    def __init__(self, console: Console, taken: int) -> None:
        super().__init__()
        self._console = console
        self._taken = taken
        self._texts = 0

    def make_room(self, texts: str) -> None:
        """Takes note of how long name and rows are, the longest of all lines."""
        self._texts = max(self._texts, cell_len(texts))

    def render(self, task: Task) -> Text:
        """Returns what fits."""
        progress: TaskProgress | None = task.fields["progress"]
        if progress is None:
            return Text()
        width = self._console.width - self._taken - self._texts
        return Text(task_figures(progress, width), style="dim", no_wrap=True)
