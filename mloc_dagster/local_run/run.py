"""Running a template here and now: its Dagster job, in this process."""

from __future__ import annotations

import copy
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import dagster as dg
from dagster import DagsterEventType

from mloc_dagster import errors
from mloc_dagster.assets import add_partition, job_name, remove_partition
from mloc_dagster.compile import CompiledTask, CompiledTemplate, Diagnostic
from mloc_dagster.definitions import build_definitions
from mloc_dagster.executors import check_tasks, task_executor, task_id_for
from mloc_dagster.fleet import detect_hardware, job_origin, misfit, requirements_of
from mloc_dagster.ops import CHANGED_MODEL_TAG, RETRY_ERRORS_TAG, WORKFLOW_TAG, step_error
from mloc_dagster.recent_templates import remember_template
from mloc_dagster.results import (
    TRAINING_NAME,
    Folder,
    TaskSummary,
    TrainingSummary,
    open_store,
    read_record,
    read_training,
)
from mloc_dagster.schema import tools_in
from mloc_dagster.tools import check_tools


@dataclass(frozen=True, slots=True)
class SloOutcome:
    """Whether a task that is done kept its SLO.

    Attributes:
        seconds: What it promised.
        took_s: Seconds from its submission to its last result.
    """

    seconds: float
    took_s: float

    @property
    def met(self) -> bool:
        """Whether it was done in time."""
        return self.took_s <= self.seconds


@dataclass(frozen=True, slots=True)
class TaskOutcome:
    """What became of one task.

    Attributes:
        task_id: The task.
        node: Its stage or node.
        folder: Address of its results.
        summary: Its figures; None when it was not aggregated, and of a training.
        training: Its figures, of a training that is done.
        slo: Whether it was done in time; None without an SLO, and of a task that is not done.
    """

    task_id: str
    node: str
    folder: str
    summary: TaskSummary | None
    training: TrainingSummary | None = None
    slo: SloOutcome | None = None


@dataclass(frozen=True, slots=True)
class RunOutcome:
    """What became of a run.

    Attributes:
        run_id: The Dagster run.
        workflow_id: The id that its tasks share; `mloc run --resume` takes it.
        succeeded: Whether every step did.
        tasks: The tasks that were started, in order.
        failures: One message per failed step, the first cause first.
        bad_input: Whether the first cause is something that the user wrote or named.
    """

    run_id: str
    workflow_id: str
    succeeded: bool
    tasks: tuple[TaskOutcome, ...]
    failures: tuple[str, ...]
    bad_input: bool

    @property
    def can_go_on(self) -> bool:
        """Whether a resume may help: the same rows would meet the same gate once more."""
        scores = [each.summary.scores for each in self.tasks if each.summary is not None]
        trainings = [each.training for each in self.tasks]
        refused = any(each is not None and not each.passed for each in (*scores, *trainings))
        return not (self.succeeded or self.bad_input or refused) and bool(self.tasks)

    def problems(self, name: str) -> list[str]:
        """Returns what is said of its failures, each once.

        Args:
            name: What the template is called.
        """
        return [
            f"{name}: {message}" + (f" ({times} times)" if times > 1 else "")
            for message, times in Counter(self.failures).items()
        ]


def check_runnable(compiled: CompiledTemplate) -> None:
    """Makes sure that every task of the template has an executor here, and what it names.

    Raises:
        TerminalError: If an executor cannot be set up, or what should be a tool is none.
        InputError: If a tool cannot be had here: a key or a program is missing. If there is no
            such index, or one that the task cannot search.
        TransientError: If an index cannot be reached.
    """
    for node in compiled.tasks:
        task_executor(node.task.spec.task_type)
        check_tools([tool for _, tool in tools_in(node.task.spec)])
    check_tasks(compiled)


def run_template(
    compiled: CompiledTemplate,
    instance: dg.DagsterInstance,
    *,
    workflow_id: str | None = None,
    retry_errors: bool = False,
    accept_changed_model: bool = False,
    run_id: str | None = None,
    tags: Mapping[str, str] | None = None,
) -> RunOutcome:
    """Runs a template's job in this process and waits for it.

    Args:
        compiled: The template, with the partition that it computes if it has any.
        instance: Records the run; the Dagster UI shows it.
        workflow_id: Goes on with the tasks of this workflow; a new one by default.
        retry_errors: Whether rows that ended with an error are computed again.
        accept_changed_model: Whether another model may go on than the one that began.
        run_id: The Dagster run's id; a new one by default.
        tags: More tags of the run.
    """
    run_id = run_id or str(uuid.uuid4())
    workflow = workflow_id or run_id
    job = build_definitions([compiled]).resolve_job_def(job_name(compiled))
    remember_template(compiled)
    added = add_partition(compiled, instance)
    result = job.execute_in_process(
        instance=_of_the_library(instance, job.name),
        # A project's own partitions are known there only: a resumed task is its template's.
        partition_key=None if compiled.partitions is None else compiled.partition,
        run_id=run_id,
        raise_on_error=False,
        run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
        tags={
            **(tags or {}),
            WORKFLOW_TAG: workflow,
            **({RETRY_ERRORS_TAG: "true"} if retry_errors else {}),
            **({CHANGED_MODEL_TAG: "true"} if accept_changed_model else {}),
        },
    )
    bad_input = _is_bad_input(result.all_events)
    if added and bad_input:
        remove_partition(compiled, instance)  # a typing error is no partition
    return RunOutcome(
        run_id=run_id,
        workflow_id=workflow,
        succeeded=result.success,
        tasks=outcomes(compiled, workflow),
        failures=_failures(result.all_events),
        bad_input=bad_input,
    )


def _of_the_library(instance: dg.DagsterInstance, job: str) -> dg.DagsterInstance:
    """Returns an instance whose run of a job is, for the UI, one of the library's code location.

    Without that the run is in the list of all runs only, and the job has none. Dagster's execution
    in a process takes no origin of the run that it makes.
    """
    found = copy.copy(instance)
    create = partial(instance.create_run_for_job, remote_job_origin=job_origin(job))
    found.create_run_for_job = create  # type: ignore[method-assign]
    return found


def outcomes(compiled: CompiledTemplate, workflow_id: str) -> tuple[TaskOutcome, ...]:
    """Reads from the store what became of each task that was started."""
    store = open_store()
    found: list[TaskOutcome] = []
    for node in compiled.tasks:
        folder = store.task(task_id_for(workflow_id, compiled, node.task.name))
        if not folder.exists("task.json"):
            continue
        summary = None
        if folder.exists("summary.json"):
            summary = TaskSummary.model_validate_json(folder.read_bytes("summary.json"))
        training = read_training(folder) if folder.exists(TRAINING_NAME) else None
        task_id = task_id_for(workflow_id, compiled, node.task.name)
        slo = _slo(node, folder, summary or training)
        found.append(TaskOutcome(task_id, node.task.name, folder.url, summary, training, slo))
    return tuple(found)


def _slo(
    node: CompiledTask, folder: Folder, done: TaskSummary | TrainingSummary | None
) -> SloOutcome | None:
    promised = node.task.spec.slo
    if promised is None or done is None:
        return None
    took = done.finished_at - read_record(folder).submitted_at
    return SloOutcome(promised.seconds, took.total_seconds())


def misfits(compiled: CompiledTemplate) -> list[Diagnostic]:
    """Returns a warning for each task that asks for other hardware than this machine has.

    Workers take only what fits them; a template that is run here and now is run all the same.
    """
    here = detect_hardware()
    found: list[Diagnostic] = []
    for node in compiled.tasks:
        spec = node.task.spec
        needs = requirements_of(spec.resources.hardware, enforce_cpu=spec.enforce_cpu)
        reason = misfit(needs, here)
        if reason is not None:
            name = compiled.metadata.name
            name += f" ({node.task.name})" if len(compiled.tasks) > 1 else ""
            message = f"{reason} on this machine, where it is run all the same"
            found.append(Diagnostic(name, 0, 0, "spec.resources.hardware", message, "warning"))
    return found


def _failures(events: Sequence[dg.DagsterEvent]) -> tuple[str, ...]:
    failed = (each for each in events if each.event_type == DagsterEventType.STEP_FAILURE)
    return tuple(map(step_error, failed))


def _is_bad_input(events: Sequence[dg.DagsterEvent]) -> bool:
    for event in events:
        if event.event_type == DagsterEventType.STEP_FAILURE:
            given = event.step_failure_data.user_failure_data
            name = given.metadata.get("error_type") if given is not None else None
            kind = getattr(errors, str(name.value), None) if name is not None else None
            return isinstance(kind, type) and issubclass(kind, errors.InputError)
    return False
