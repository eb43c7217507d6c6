"""Which waiting tasks form the next runs, and which small tasks may share one."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import batched

from mloc_dagster.compile import CompiledTemplate
from mloc_dagster.fleet import QueuedRun, wanted_order
from mloc_dagster.ledger import TaskEntry
from mloc_dagster.schema import (
    HttpDestination,
    ListData,
    ModelSpec,
    RowSpec,
    canonical_json,
    find_task_type,
    secrets_in,
)

MOST_ROWS = 64
"""Rows of a task that counts as small."""

_OWN = {"data", "output", "slo", "retries", "parallel"}
"""What each task of a batch may have differently: it is seen to task by task."""


def batch_key(compiled: CompiledTemplate) -> str | None:
    """Returns what a template's task must share with others to be computed with them.

    That is its whole spec but for its rows and what becomes of them. A task is left alone if its
    rows would be answered otherwise among others (a seed counts from its own first row), if others
    would wait for its delivery or its trackers, if it is large, or if it is one of several.

    Returns:
        A key; None if the task wants a run of its own.
    """
    if len(compiled.tasks) != 1 or compiled.schedule is not None:
        return None
    spec = compiled.tasks[0].task.spec
    if not isinstance(spec, RowSpec) or not _is_small(spec) or not _is_indifferent(spec):
        return None
    if find_task_type(spec.task_type).report is not None:
        return None  # its result is more than its rows
    if isinstance(spec, ModelSpec) and any(secrets_in(spec.model)):
        return None  # each asks its endpoint with its own key
    shared = spec.model_dump(mode="json", by_alias=True, exclude=_OWN)
    text = canonical_json([spec.task_type, shared])
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _is_small(spec: RowSpec) -> bool:
    data = spec.data
    reports = spec.evaluation is not None and bool(spec.evaluation.report_to)
    waits = reports or isinstance(spec.output.destination, HttpDestination)
    # A batch's shards are in no pool, and what they spend is not told by task.
    if waits or spec.resources.pool is not None or spec.budget.given:
        return False
    return isinstance(data, ListData) and len(data.items) <= MOST_ROWS


def _is_indifferent(spec: RowSpec) -> bool:
    """Tells whether it makes no difference to a row which place among others it has."""
    if isinstance(spec.data, ListData) and spec.data.shuffle:
        return False
    return spec.rows_are_alike


WINDOW = timedelta(seconds=1)
"""How long a small task waits for others while a batch like its own is computed."""

MOST_TASKS = 512
"""Tasks of a batch."""

MOST_AT_ONCE = 2
"""Batches of one key that are computed at a time: the next is filled while these go on."""


@dataclass(frozen=True, slots=True)
class Group:
    """Tasks that one run works on.

    Attributes:
        tasks: In the order in which they are due.
        batch_key: What they have in common; None for the tasks of one workflow.
    """

    tasks: tuple[TaskEntry, ...]
    batch_key: str | None = None


def by_slack(waiting: Sequence[TaskEntry], now: datetime) -> list[TaskEntry]:
    """Returns tasks in the order in which queued runs go: by how long each can still wait.

    Args:
        waiting: As they came.
        now: The time.
    """
    tasks = {each.task_id: each for each in waiting}
    runs = [
        QueuedRun(each.task_id, each.submitted_at.timestamp(), _slo_s(each)) for each in waiting
    ]
    return [tasks[each.run_id] for each in wanted_order(runs, now.timestamp())]


def _slo_s(task: TaskEntry) -> float | None:
    # The two times may come from clocks that differ.
    return task.due and max((task.due - task.submitted_at).total_seconds(), 0.1)


def next_groups(
    waiting: Sequence[TaskEntry], busy: Mapping[str, int], now: datetime, *, slots: int
) -> list[Group]:
    """Returns the groups that should be run now, the first in order of urgency.

    Small tasks of one key go at once while no batch of it is computed. While one is, they wait for
    others to come: until it is done, or a full batch waits, or the oldest has waited for a second.
    While two are, they wait for one to end, and the next batch is the larger for it.

    Args:
        waiting: In order of urgency.
        busy: How many batches are computed, by key.
        now: The time.
        slots: How many runs may begin.
    """
    alone: list[Group] = []
    alike: dict[str, list[TaskEntry]] = {}
    workflows: set[str] = set()
    for task in waiting:
        # What is retried goes on with what is there, row by row, and so alone.
        if task.batch_key is None or task.runs:
            if task.workflow_id not in workflows:
                workflows.add(task.workflow_id)
                alone.append(Group((task,)))
        else:
            alike.setdefault(task.batch_key, []).append(task)
    ready = [
        group
        for key, tasks in alike.items()
        for group in _of_key(key, tasks, busy.get(key, 0), now)
    ]
    urgency = {task.task_id: place for place, task in enumerate(waiting)}
    found = sorted([*alone, *ready], key=lambda group: urgency[group.tasks[0].task_id])
    return found[: max(slots, 0)]


def _of_key(key: str, tasks: Sequence[TaskEntry], busy: int, now: datetime) -> Iterator[Group]:
    for some in batched(tasks, MOST_TASKS):
        oldest = min(task.submitted_at for task in some)
        closed = not busy or len(some) == MOST_TASKS or now - oldest >= WINDOW
        if busy >= MOST_AT_ONCE or not closed:
            return
        busy += 1
        yield Group(some, key)
