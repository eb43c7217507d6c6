"""Tasks without the API: what Dagster, Redis and the store know of them.

docs/cli.md promises it for a fleet that has no API (`MLOC_REDIS_URL`), for `mloc launch`, and for
tasks that are not in the API's ledger, as those of Dagster's UI. What it returns are the models of
`wire`, so that commands print it as they print an API's answers.
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from mloc_dagster.errors import InputError
from mloc_dagster.settings import settings
from mloc_dagster.wire import DeadLetterView, TaskDetail, TaskState

if TYPE_CHECKING:
    import dagster as dg

    from mloc_dagster.fleet import FleetEngine
    from mloc_dagster.tasks import Found


_TAKEN_OVER = ("DAGSTER_HOME", "MLOC_RESULTS_URL", "MLOC_TEMPLATES_DIR")


@dataclass(frozen=True, slots=True)
class Fleet:
    """What the commands ask.

    Attributes:
        instance: Dagster's runs.
        engine: The tickets.
    """

    instance: dg.DagsterInstance
    engine: FleetEngine


@contextmanager
def open_fleet() -> Generator[Fleet]:
    """Opens the fleet of `MLOC_REDIS_URL`, or the stack that is up in `MLOC_HOME`.

    Raises:
        InputError: If there is neither.
        TransientError: If its Redis does not answer.
    """
    if settings().redis_url is None:
        use_stack()
    from mloc_dagster.fleet import open_engine, require_fleet
    from mloc_dagster.services import open_instance

    require_fleet()
    with open_instance() as instance:
        yield Fleet(instance, open_engine())


def use_stack() -> None:
    """Makes this process see what the stack in `MLOC_HOME` was started with.

    Raises:
        InputError: If none is up.
    """
    from mloc_dagster.services import saved_plan, stack_layout, supervisor_process

    layout = stack_layout()
    supervisor, plan = supervisor_process(layout), saved_plan(layout)
    if supervisor is None or plan is None:
        raise InputError(
            f"nothing is up in {layout.home}: start the system with `mloc up`, or set"
            " MLOC_REDIS_URL and MLOC_POSTGRES_URL"
        )
    # Where results and templates are was decided when the stack was started, perhaps elsewhere.
    started_with = supervisor.environ()
    os.environ |= {name: started_with[name] for name in _TAKEN_OVER if name in started_with}
    os.environ |= {"MLOC_REDIS_URL": plan.redis_url, "MLOC_POSTGRES_URL": plan.postgres_url}
    settings.cache_clear()


_PAGE = 100
_LOOK_EVERY_S = 0.3


def details(task_or_run_id: str) -> Sequence[TaskDetail]:
    """Returns all that is known of a task, or of the tasks of a workflow or run.

    Raises:
        InputError: If there is no such task or run.
    """
    with open_fleet() as fleet:
        from mloc_dagster.tasks import find

        return _details(fleet, find(fleet.instance, task_or_run_id))


def _details(fleet: Fleet, found: Found) -> Sequence[TaskDetail]:
    from mloc_dagster.events import last_training_progress, open_redis
    from mloc_dagster.fleet import fleet_url
    from mloc_dagster.tasks import detail_of

    with open_redis(fleet_url()) as client:
        last_progress = partial(last_training_progress, client)
        return [
            detail_of(fleet.instance, fleet.engine, found.workflow, each, last_progress)
            for each in found.tasks
        ]


def latest(wanted: Collection[TaskState], limit: int) -> Sequence[TaskDetail]:
    """Returns the latest tasks, the newest first; those in the states that are wanted, if any."""
    with open_fleet() as fleet:
        return list(islice(_latest(fleet, wanted), limit))


def _latest(fleet: Fleet, wanted: Collection[TaskState]) -> Iterator[TaskDetail]:
    from mloc_dagster.tasks import latest_workflows, status_of

    seen: set[str] = set()
    cursor: str | None = None
    while True:
        page, cursor = latest_workflows(fleet.instance, _PAGE, cursor)
        for workflow in page:
            if workflow.workflow_id in seen:
                continue
            seen.add(workflow.workflow_id)
            for task in workflow.tasks():
                status = status_of(fleet.instance, fleet.engine, workflow, task, count_rows=False)
                if not wanted or status.status in wanted:
                    yield status
        if cursor is None:
            return


def find_dead_letters() -> Sequence[DeadLetterView]:
    """Returns the tasks that failed for good, the latest first."""
    with open_fleet() as fleet:
        from mloc_dagster.tasks import find_dead_letters

        return find_dead_letters(fleet.instance)


def cancel(task_or_run_id: str, *, wait: bool) -> Sequence[TaskDetail]:
    """Stops the run of a task; with `wait` returns its tasks when it has ended.

    Raises:
        InputError: If there is no such task, or it has ended.
    """
    with open_fleet() as fleet:
        from mloc_dagster.tasks import cancel

        run_id = cancel(fleet.instance, task_or_run_id)
        return _wait(fleet, [run_id]) if wait else ()


def retry_task(task_or_run_id: str, *, failed_rows: bool, wait: bool) -> Sequence[TaskDetail]:
    """Queues what a task or a run left undone; with `wait` returns its tasks when it has ended.

    Raises:
        InputError: If there is no such task, or nothing to retry.
    """
    with open_fleet() as fleet:
        from mloc_dagster.sensors import tasks_of
        from mloc_dagster.tasks import find, retry_task

        run_id = retry_task(fleet.instance, task_or_run_id, failed_rows=failed_rows)
        tasks = tasks_of(find(fleet.instance, run_id).workflow.latest)
        _print_ids(run_id, [each.task_id for each in tasks])
        return _wait(fleet, [run_id]) if wait else ()


def launch_template(template: str, *, sets: Sequence[str], wait: bool) -> Sequence[TaskDetail]:
    """Queues a library template; with `wait` returns its tasks when they have ended.

    Raises:
        InputError: If it is no library template, or `sets` changes what its job is made of.
    """
    with open_fleet() as fleet:
        path = _library_path(template)
        from mloc_dagster.compile import compile_file
        from mloc_dagster.local_run import compile_with_sets
        from mloc_dagster.tasks import check_launchable, launch_template

        changed = compile_with_sets(path, sets)
        for before, after in zip(compile_file(path), changed, strict=True):
            check_launchable(before, after)
        launched = [launch_template(fleet.instance, each) for each in changed]
        for each in launched:
            _print_ids(each.run_id, each.task_ids)
        return _wait(fleet, [each.run_id for each in launched]) if wait else ()


def _library_path(template: str) -> Path:
    from mloc_dagster.library import library_files
    from mloc_dagster.local_run import template_path

    path = template_path(template)
    if path.resolve() not in {each.resolve() for each in library_files().values()}:
        raise InputError(
            f"{template} is not in the template library: `mloc submit {template}` queues any"
            f" template over the HTTP API, `mloc run {template}` runs it here"
        )
    return path


def _print_ids(run_id: str, task_ids: Sequence[str]) -> None:
    typer.echo(f"run  {run_id}")
    for each in task_ids:
        typer.echo(f"task {each}")


def _wait(fleet: Fleet, run_ids: Sequence[str]) -> Sequence[TaskDetail]:
    """Returns the tasks of runs when these have ended; Ctrl-C ends the waiting and not the runs."""
    from mloc_dagster.tasks import find

    for run_id in run_ids:
        try:
            while (run := fleet.instance.get_run_by_id(run_id)) is None or not run.is_finished:
                time.sleep(_LOOK_EVERY_S)
        except KeyboardInterrupt:
            typer.echo(f"run {run_id} goes on; `mloc cancel {run_id}` stops it", err=True)
            raise
    return [task for each in run_ids for task in _details(fleet, find(fleet.instance, each))]
