"""A ledger in memory, for tests of what stands on it."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime

from pydantic import JsonValue

from mloc_dagster.ledger import Accepted, KeyReused, PlannedRun, Submission, TaskEntry, TaskFilter
from mloc_dagster.wire import TaskState


class MemoryLedger:
    """What `Ledger` does for the API; `commits` holds how many submissions each commit had."""

    def __init__(self) -> None:
        self.entries: dict[str, TaskEntry] = {}
        self.documents: dict[str, Mapping[str, JsonValue]] = {}
        self.contents: dict[str, str] = {}
        self.keys: dict[str, Accepted] = {}
        self.requests: dict[str, str] = {}
        self.commits: list[int] = []
        self.failure: Exception | None = None
        self.lock = threading.Lock()
        self.openai = NoObjects()

    def accept(self, submissions: Sequence[Submission]) -> Sequence[Accepted | KeyReused]:
        with self.lock:
            if self.failure is not None:
                raise self.failure
            self.commits.append(len(submissions))
            return [self._accept(each) for each in submissions]

    def _accept(self, submission: Submission) -> Accepted | KeyReused:
        request = submission.request
        if request is not None and self.requests.setdefault(request.key, request.content_hash) != (
            request.content_hash
        ):
            return KeyReused("the key came before")
        known = None if request is None else self.keys.get(request.name)
        if known is not None:
            return replace(known, new=False)
        accepted = Accepted(
            workflow_id=submission.workflow_id, new=True, content_hash=submission.content_hash
        )
        if request is not None:
            self.keys[request.name] = accepted
        self.documents[submission.workflow_id] = submission.document
        self.contents[submission.workflow_id] = submission.content_hash
        for each in submission.tasks:
            self.entries[each.task_id] = TaskEntry(
                task_id=each.task_id,
                workflow_id=submission.workflow_id,
                node=each.node,
                task_type=each.task_type,
                template=submission.template_name,
                owner=submission.owner,
                labels=submission.labels,
                depends_on=each.depends_on,
                state=TaskState.WAITING if each.depends_on else TaskState.PENDING,
                batch_key=each.batch_key,
                due=each.due,
                submitted_at=datetime.now(UTC),
                rows=each.rows,
                place=len(self.entries) + 1,
            )
        return accepted

    def set(self, task_id: str, **fields: object) -> None:
        """Changes a task, as a dispatcher would."""
        self.entries[task_id] = replace(self.entries[task_id], **fields)  # type: ignore[arg-type]

    def task(self, task_id: str) -> TaskEntry | None:
        return self.entries.get(task_id)

    def workflow(self, workflow_id: str) -> Sequence[TaskEntry]:
        return [each for each in self.entries.values() if each.workflow_id == workflow_id]

    def tasks(self, ids: Collection[str]) -> dict[str, TaskEntry]:
        return {each: self.entries[each] for each in ids if each in self.entries}

    def list(
        self, chosen: TaskFilter, *, limit: int, cursor: str | None = None
    ) -> tuple[Sequence[TaskEntry], str | None]:
        below = int(cursor) if cursor else 1 << 60
        found = [
            each
            for each in sorted(self.entries.values(), key=lambda each: -each.place)
            if each.place < below and _matches(each, chosen)
        ]
        page = found[:limit]
        return page, str(page[-1].place) if len(found) > limit else None

    def counts(self) -> Mapping[TaskState, int]:
        return Counter(each.state for each in self.entries.values())

    def open_runs(self) -> Sequence[PlannedRun]:
        return []

    def cancel(self, task_ids: Collection[str]) -> Mapping[str, TaskState]:
        for each in task_ids:
            if self.entries[each].run_id is None:
                self.set(each, state=TaskState.CANCELLED, ended_at=datetime.now(UTC))
            else:
                self.set(each, cancelling=True)
        return {each: self.entries[each].state for each in task_ids}

    def retry(self, task_ids: Collection[str], *, failed_rows: bool) -> set[str]:
        for each in task_ids:
            self.set(each, state=TaskState.PENDING, run_id=None, error="")
        return set(task_ids)

    def forget(
        self,
        ids: Collection[str],
        remove: Callable[[str], object] = lambda _: None,
        remove_document: Callable[[str], object] = lambda _: None,
    ) -> set[str]:
        ended = {each for each in ids if each in self.entries and self.entries[each].state.ended}
        gone: set[str] = set()
        for each in ended:
            remove(each)
            gone.add(self.contents[self.entries.pop(each).workflow_id])
        for content in gone - {self.contents[each.workflow_id] for each in self.entries.values()}:
            remove_document(content)
        return ended


class NoObjects:
    """The ledger's files and batches, of which there are none."""

    def unsettled(self) -> Sequence[object]:
        return []

    def unneeded_files(self, purpose: str) -> Sequence[object]:
        return []

    def file(self, file_id: str) -> None:
        return None

    def batch(self, batch_id: str) -> None:
        return None


def _matches(entry: TaskEntry, chosen: TaskFilter) -> bool:
    return (
        (chosen.states is None or entry.state in chosen.states)
        and chosen.owner in (None, entry.owner)
        and chosen.template in (None, entry.template)
        and chosen.task_type in (None, entry.task_type)
        and chosen.workflow_id in (None, entry.workflow_id)
        and chosen.worker_id in (None, entry.worker_id)
        and (chosen.labels or {}).items() <= dict(entry.labels).items()
    )
