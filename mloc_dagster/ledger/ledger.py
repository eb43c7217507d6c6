"""The ledger: what was accepted, and what became of it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Self

from pydantic import JsonValue
from sqlalchemy.engine import Engine

from mloc_dagster.home import postgres_url
from mloc_dagster.ledger import acceptance, dispatching, queries, requests
from mloc_dagster.ledger.acceptance import Accepted, KeyReused
from mloc_dagster.ledger.database import (
    CHANNEL,
    create_tables,
    open_engine,
    tasks,
    transaction,
)
from mloc_dagster.ledger.model import (
    FoundWorkflow,
    PlannedRun,
    Submission,
    TaskChange,
    TaskEntry,
    TaskFilter,
)
from mloc_dagster.ledger.openai_objects import OpenaiObjects
from mloc_dagster.ledger.queries import counts, create_counts
from mloc_dagster.services import Notifications
from mloc_dagster.wire import TaskState


class Ledger:
    """Accepted submissions, their tasks, and the runs that work on them, in PostgreSQL.

    Each method is one transaction, and may be called by several threads at once. Each raises
    `TransientError` when the database is away.

    Args:
        engine: Of a database with the ledger's tables.
        url: Its address.

    Attributes:
        openai: Files and batches of the routes below `/v1`.
    """

    def __init__(self, engine: Engine, url: str) -> None:
        self._engine = engine
        self._url = url
        self.openai = OpenaiObjects(engine)

    @classmethod
    def open(cls, url: str | None = None) -> Self:
        """Opens the ledger, creating its tables where they are missing.

        Args:
            url: The database; by default Dagster's.
        """
        found = url or postgres_url()
        engine = open_engine(found)
        with transaction(engine) as connection:
            create_tables(connection)
            create_counts(connection)
        return cls(engine, found)

    def close(self) -> None:
        """Closes the connections that nobody uses."""
        self._engine.dispose()

    def listen(self) -> Notifications:
        """Returns a connection that hears of news."""
        return Notifications(self._url, CHANNEL)

    # Accepting

    def accept(self, submissions: Sequence[Submission]) -> Sequence[Accepted | KeyReused]:
        """Accepts submissions: they are durable when this returns, all of them or none.

        Of those with one request key the first is accepted, and the others get its workflow, in
        this call and in any later one. After a `TransientError` the same submissions may be given
        again: nothing is accepted twice.

        Returns:
            What became of each, in order; `KeyReused` for a key that came with another document.
        """
        if not submissions:
            return []
        with transaction(self._engine) as connection:
            return acceptance.accept(connection, submissions)

    # Reading

    def task(self, task_id: str) -> TaskEntry | None:
        """Returns a task; None if there is no such one."""
        return self.tasks([task_id]).get(task_id)

    def tasks(self, ids: Collection[str]) -> dict[str, TaskEntry]:
        """Returns the tasks of some ids that there are."""
        with transaction(self._engine) as connection:
            return queries.by_id(connection, ids)

    def workflow(self, workflow_id: str) -> Sequence[TaskEntry]:
        """Returns the tasks of a workflow in the template's order; none if there is no such one."""
        with transaction(self._engine) as connection:
            return queries.entries(connection, tasks.c.workflow_id == workflow_id)

    def list(
        self, wanted: TaskFilter, *, limit: int, cursor: str | None = None
    ) -> tuple[Sequence[TaskEntry], str | None]:
        """Returns a page of tasks, the newest first, and where the next one goes on.

        Tasks that are accepted meanwhile move nothing.

        Raises:
            InputError: If the cursor is none of ours.
        """
        with transaction(self._engine) as connection:
            return queries.page(connection, wanted, limit=limit, cursor=cursor)

    def counts(self) -> Mapping[TaskState, int]:
        """Returns how many tasks are in each state."""
        with transaction(self._engine) as connection:
            return counts(connection)

    def document(self, workflow_id: str) -> Mapping[str, JsonValue] | None:
        """Returns what was submitted, as written; None if there is no such workflow."""
        return self.documents([workflow_id]).get(workflow_id)

    def documents(self, workflow_ids: Collection[str]) -> dict[str, Mapping[str, JsonValue]]:
        """Returns what was submitted, by workflow; what nobody knows is left out."""
        with transaction(self._engine) as connection:
            return queries.documents_of(connection, workflow_ids)

    def content_hash(self, workflow_id: str) -> str | None:
        """Returns the hash of what was submitted; None if there is no such workflow."""
        with transaction(self._engine) as connection:
            return queries.content_hash(connection, workflow_id)

    # What users wish

    def cancel(self, ids: Collection[str]) -> Mapping[str, TaskState]:
        """Stops tasks; returns how they are then.

        What no run has is cancelled at once, with all that would share its run; of the others
        `cancelling` tells the dispatcher.
        """
        with transaction(self._engine) as connection:
            return requests.cancel(connection, ids)

    def retry(self, ids: Collection[str], *, failed_rows: bool = False) -> set[str]:
        """Lets tasks wait for another run, with what is undone of their workflows.

        Args:
            ids: The tasks; those that are done or at work stay as they are.
            failed_rows: Whether rows that ended with an error are computed again, also of tasks
                that are done.

        Returns:
            The tasks that wait now.
        """
        with transaction(self._engine) as connection:
            return requests.retry(connection, ids, failed_rows=failed_rows)

    def forget(
        self,
        ids: Collection[str],
        remove: Callable[[str], object] = lambda _: None,
        remove_document: Callable[[str], object] = lambda _: None,
    ) -> set[str]:
        """Deletes what is known of tasks that have ended; returns which these were.

        Args:
            ids: The tasks.
            remove: Called for each of them before; meanwhile nobody can retry it.
            remove_document: Called with the hash of each document that no task has any more;
                meanwhile nobody can submit it.
        """
        with transaction(self._engine) as connection:
            return requests.forget(connection, ids, remove, remove_document)

    # Dispatching

    def waiting(self, limit: int, *, without: Collection[str] = ()) -> Sequence[TaskEntry]:
        """Returns tasks that wait for a run: by the time that they are due, then by age.

        Args:
            limit: So many at most.
            without: Batch keys whose tasks are left out.
        """
        with transaction(self._engine) as connection:
            return dispatching.waiting(connection, limit, without)

    def cancelling(self) -> Sequence[TaskEntry]:
        """Returns the tasks that a run has and somebody wants stopped."""
        with transaction(self._engine) as connection:
            return queries.entries(connection, tasks.c.cancelling)

    def untold(self, limit: int) -> Sequence[TaskEntry]:
        """Returns tasks that were cancelled before a run had them, until `told` of them."""
        with transaction(self._engine) as connection:
            return queries.entries(connection, tasks.c.untold, limit=limit)

    def told(self, ids: Collection[str]) -> None:
        """Notes that somebody said of tasks that they were cancelled."""
        with transaction(self._engine) as connection:
            dispatching.told(connection, ids)

    def adopt(self, found: FoundWorkflow) -> PlannedRun | None:
        """Makes a run that the dispatcher did not make the newest of a workflow's tasks.

        Tasks of a workflow that was never submitted are known from then on.

        Returns:
            The run, with the tasks that are neither done nor another run's; None without any,
            and for a run that is known.
        """
        with transaction(self._engine) as connection:
            return dispatching.adopt(connection, found)

    def followed_to(self, place: int | None = None) -> int:
        """Returns the place up to which Dagster's runs have been looked through.

        Args:
            place: How far they have been now.
        """
        with transaction(self._engine) as connection:
            return dispatching.followed_to(connection, place)

    def unknown_runs(self, run_ids: Collection[str]) -> set[str]:
        """Returns those of some runs that were neither planned nor adopted."""
        with transaction(self._engine) as connection:
            return dispatching.unknown_runs(connection, run_ids)

    def plan_runs(self, runs: Sequence[PlannedRun]) -> Sequence[PlannedRun]:
        """Gives waiting tasks their runs: from then on these are what the tasks wait for.

        Returns:
            The runs with the tasks that nobody cancelled meanwhile; none without a task.
        """
        with transaction(self._engine) as connection:
            return dispatching.plan_runs(connection, runs)

    def open_runs(self) -> Sequence[PlannedRun]:
        """Returns the runs that were planned and have not ended, oldest first."""
        with transaction(self._engine) as connection:
            return dispatching.open_runs(connection)

    def handed_over(self, run_ids: Collection[str]) -> None:
        """Notes that the fleet has runs."""
        with transaction(self._engine) as connection:
            dispatching.handed_over(connection, run_ids)

    def end_runs(self, run_ids: Collection[str]) -> None:
        """Notes that nothing more will come of runs."""
        with transaction(self._engine) as connection:
            dispatching.end_runs(connection, run_ids)

    def give_back(self, run_id: str) -> None:
        """Ends a run; its tasks that have not ended wait for others, unless they are not wanted."""
        with transaction(self._engine) as connection:
            dispatching.give_back(connection, run_id)

    def change(self, changes: Sequence[TaskChange]) -> None:
        """Writes what is new about tasks whose newest run says so, unless they have ended."""
        if changes:
            with transaction(self._engine) as connection:
                dispatching.change(connection, changes)
