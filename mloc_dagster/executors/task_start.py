"""Starting a task (submission, input, plan) and opening it again from its folder in any process."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache, lru_cache
from importlib.util import find_spec
from pathlib import PurePosixPath
from typing import Any

from pydantic import JsonValue

from mloc_dagster import __version__
from mloc_dagster.compile import CompiledTask, CompiledTemplate, compile_mapping, resolve_task
from mloc_dagster.data import (
    TRAINING_ROWS_NAME,
    RequestBlock,
    Requests,
    RowsBlock,
    TrainingInputSummary,
    lookup_reference,
    respool_failed,
    spool_input,
    with_texts,
    write_evaluation_rows,
    write_training_rows,
)
from mloc_dagster.errors import (
    DataError,
    InputError,
    MissingExtraError,
    MlocError,
    TerminalError,
)
from mloc_dagster.executors.input_planning import plan_input, usual_output_tokens
from mloc_dagster.executors.model_source import check_leave
from mloc_dagster.net import Origin, Reach
from mloc_dagster.planning import PLAN_NAME, Chunk, Plan, cut_shards
from mloc_dagster.results import (
    Folder,
    Rates,
    TaskRecord,
    TaskReport,
    open_store,
    read_plan,
    read_record,
    submitted_template,
    write_plan,
    write_record,
)
from mloc_dagster.schema import (
    ModelSpec,
    OpenaiBatchData,
    RowEvaluation,
    RowSpec,
    Task,
    TrainingSpec,
    find_task_type,
    passage_metric,
)
from mloc_dagster.tracking import check_installed


@dataclass(frozen=True, slots=True)
class OpenTask:
    """A task whose submission is durable.

    Attributes:
        folder: Where everything of the task lies.
        record: The submission.
        task: The typed task, with every reference to upstream results resolved.
        upstream: The folders of the tasks it reads, by node name.
    """

    folder: Folder
    record: TaskRecord
    task: Task
    upstream: Mapping[str, Folder]

    @property
    def spec(self) -> RowSpec:
        """The spec of a task that works row by row."""
        return self.task.spec  # type: ignore[return-value]

    @property
    def training_spec(self) -> TrainingSpec:
        """The spec of a training."""
        return self.task.spec  # type: ignore[return-value]

    @property
    def model_name(self) -> str:
        """What answers: the model's identifier, or the task type where there is no model."""
        spec = self.task.spec
        if not isinstance(spec, ModelSpec | TrainingSpec):
            return spec.task_type
        name = spec.model.source.identifier
        if spec.model.source.type != "openai":
            return name
        try:
            return self.reach.filled_in(name)
        except InputError:  # only workers need the variable that names an endpoint's model
            return name

    @property
    def model_revision(self) -> str | None:
        """The revision that the template names, if it names one."""
        spec = self.task.spec
        return spec.model.source.revision if isinstance(spec, ModelSpec) else None

    @property
    def reach(self) -> Reach:
        """What it may read and contact."""
        return Reach(self.record.origin)

    @property
    def rates(self) -> Rates:
        """What tokens, or a second of an engine's time, cost."""
        return Rates.of(self.task.spec.resources)

    def report(self) -> TaskReport | None:
        """Returns what tells of the task's rows; a new one each time."""
        make = find_task_type(self.task.spec.task_type).report
        return None if make is None else make(self.task.spec)

    def conclude(self) -> Mapping[str, JsonValue]:
        """Does what the task type does when all rows are there; returns what it tells of that."""
        spec = self.task.spec
        conclude = find_task_type(spec.task_type).conclude
        if conclude is None:
            return {}
        with self.reach.applied():
            return conclude(spec, self.folder, self.plan())

    def plan(self) -> Plan:
        """Reads the plan; there is one as soon as the input was spooled.

        Raises:
            DamagedFileError: If it is not the plan that was written.
        """
        plan = read_plan(self.folder)
        if plan is None:
            raise FileNotFoundError(f"{self.folder.url}/{PLAN_NAME}")
        return plan


def open_task(task_id: str) -> OpenTask:
    """Opens the task from its record.

    Raises:
        InputError: If there is no such task on the store.
        DataError: If a reference to an upstream result cannot be resolved.
        OutOfReachError: If it came over the API and names what such a task may not reach.
    """
    return _open_task(open_store().url, task_id)


@lru_cache(maxsize=64)
def _open_task(results_url: str, task_id: str) -> OpenTask:
    store = open_store(results_url)
    folder = store.task(task_id)
    record = read_record(folder)
    upstream = {node: store.task(each) for node, each in record.upstream.items()}
    compiled = compile_mapping(submitted_template(folder, record))
    node = next(each for each in compiled.tasks if each.task.name == record.node)
    # The API has checked the template, but only now are references filled in, and a worker has
    # settings and folders of its own.
    task = resolve_task(
        node,
        lambda reference: lookup_reference(reference, upstream),
        check=Reach(record.origin).check_spec,
    )
    return OpenTask(folder, record, task, upstream)


BAD_ROWS_NAME = "input/bad-rows.json"


def plan_training(
    folder: Folder, task_id: str, spec: TrainingSpec, upstream: Mapping[str, Folder]
) -> Plan:
    """Writes a training's rows and plan.

    Args:
        folder: The task's folder.
        task_id: The task.
        spec: What is trained, on what.
        upstream: Folders of the tasks that it reads, by node name.

    Raises:
        DataError: If rows are missing or unreadable, or more than its budget cannot be used.
    """
    if spec.evaluation is not None:
        write_evaluation_rows(spec.evaluation, spec.method, folder, upstream)
    written = write_training_rows(spec.data, spec.method, folder, upstream)
    if not written.rows:
        raise DataError(f"there is nothing to train on: no row of {written.source} can be used")
    folder.write_bytes(BAD_ROWS_NAME, written.model_dump_json().encode())
    plan = Plan(
        task_id=task_id,
        source=written.source,
        rows=written.rows,
        data_version=written.data_version,
        seed=spec.training.seed,
        chunks=(Chunk(name=TRAINING_ROWS_NAME, start=0, rows=written.rows),),
        shards=tuple(cut_shards(task_id, written.rows, 1)),
    )
    write_plan(folder, plan)
    return plan


def bad_row_count(folder: Folder) -> int:
    """Returns how many rows of a training's input could not be used."""
    return TrainingInputSummary.model_validate_json(folder.read_bytes(BAD_ROWS_NAME)).bad


@cache
def task_executor(name: str) -> Any:
    """Returns the `TaskExecutor` of a task type, of a training its `Trainer`; one per process.

    Args:
        name: The task type.

    Raises:
        UnknownNameError: If nobody registered that name.
        TerminalError: If it cannot be run or set up.
    """
    found = find_task_type(name)
    if found.executor is None:
        raise TerminalError(f"the task type {name!r} is not built yet")
    try:
        return found.executor()
    except MlocError:
        raise
    except Exception as error:
        raise TerminalError(
            f"the task type {name!r} from {found.executor.__module__} cannot be set up: "
            f"{type(error).__name__}: {error}"
        ) from error


def task_id_for(workflow_id: str, compiled: CompiledTemplate, node: str) -> str:
    """Returns the id of a node's task: the workflow's own when the template is one task."""
    return workflow_id if len(compiled.tasks) == 1 else f"{workflow_id}-{node}"


def start_task(
    document: Mapping[str, JsonValue],
    node: str,
    *,
    workflow_id: str,
    run_id: str,
    upstream: Mapping[str, str],
    origin: Origin = "local",
    retry_errors: bool = False,
    partition: str | None = None,
) -> tuple[OpenTask, Plan]:
    """Writes `task.json`, then the input and `plan.json`; what is already there is kept.

    Args:
        document: The effective template: overrides applied, references unresolved.
        node: Which of its tasks.
        workflow_id: The id that all tasks of this submission share.
        run_id: The Dagster run.
        upstream: Task ids of the nodes that this one depends on, by node name.
        origin: Where the task comes from.
        retry_errors: Whether rows that failed upstream are built anew.
        partition: The partition that the template was filled with, if its runs have one.

    Raises:
        UnknownNameError: If nobody registered an executor for the task type.
        TerminalError: If a task of the template, this one or a later, may not run here.
        DataError: If the input is missing, unreadable or empty.
    """
    compiled = compile_mapping(document, partition=partition)
    chosen = next(each for each in compiled.tasks if each.task.name == node)
    task_executor(chosen.task.spec.task_type)
    # All of them: what the last stage may not do is not found after hours of the others.
    check_leave(each.task for each in compiled.tasks)
    for each in compiled.tasks:
        _check_evaluation(each.task)
    task_id = task_id_for(workflow_id, compiled, node)
    folder = open_store().task(task_id)
    if not folder.exists("task.json"):
        record = task_record(
            task_id, compiled, chosen, workflow_id, run_id, dict(upstream), origin=origin
        )
        write_record(folder, record)
    opened = open_task(task_id)
    with opened.reach.applied():
        plan = read_plan(folder)
        if plan is None:
            check_tasks(compiled)
            return opened, _plan(opened)
        if retry_errors and opened.upstream and isinstance(opened.task.spec, RowSpec):
            spec = opened.spec
            plan = respool_failed(plan, input_of(spec), folder, opened.upstream, spec.takes)
        return opened, plan


def check_tasks(compiled: CompiledTemplate) -> None:
    """Checks what the task types of a template need, before the first of its tasks is begun.

    Raises:
        MlocError: What `TaskType.check` raises.
    """
    specs = [each.task.spec for each in compiled.tasks]
    for spec in specs:
        check = find_task_type(spec.task_type).check
        if check is not None:
            check(spec, [each for each in specs if each is not spec])


def _check_evaluation(task: Task) -> None:
    spec = task.spec
    evaluation = spec.evaluation if isinstance(spec, RowSpec | TrainingSpec) else None
    if evaluation is not None:
        check_installed("evaluation.report_to", evaluation.report_to)
    if isinstance(evaluation, RowEvaluation):
        found = [each.type for each in evaluation.row_metrics if passage_metric(each.type)]
        if found and find_spec("ir_measures") is None:
            raise MissingExtraError(f"evaluation.metrics: {found[0]}", "rag")


def _plan(opened: OpenTask) -> Plan:
    if isinstance(opened.task.spec, TrainingSpec):
        return plan_training(
            opened.folder, opened.record.task_id, opened.task.spec, opened.upstream
        )
    spec = opened.spec
    prepare = find_task_type(spec.task_type).prepare
    if prepare is not None:
        prepare(spec, opened.folder, opened.upstream)
    return spool_input(
        opened.record.task_id,
        input_of(spec),
        opened.folder,
        spec.parallel.shards,
        seed_of(spec),
        opened.upstream,
        plan_input(spec, usual_output_tokens(spec, opened.folder.store)),
        spec.evaluation,
        shard_rows=spec.shard_rows,
        takes=spec.takes,
    )


def input_of(spec: RowSpec) -> RowsBlock:
    """Returns the data block of a task that works row by row."""
    data = with_texts(spec)
    if data is None:
        raise InputError(f"a task of type {spec.task_type!r} needs data")
    if isinstance(data, OpenaiBatchData):
        return Requests(**data.model_dump(), block=request_block(spec))
    return data


def request_block(spec: RowSpec) -> RequestBlock:
    """Returns what a task says of requests that it answers."""
    if not isinstance(spec, ModelSpec):
        return RequestBlock(spec.task_type)
    asked = [each for each in spec.model.adapters if each.apply == "request"]
    names = [each.name or PurePosixPath(each.path or each.url or "").name for each in asked]
    given = frozenset(spec.row_block.model_fields_set)
    return RequestBlock(spec.task_type, given, frozenset(names))


def seed_of(spec: RowSpec) -> int:
    """Returns the template's seed, or draws one that the plan then keeps."""
    return secrets.randbits(31) if spec.given_seed is None else spec.given_seed


def task_record(
    task_id: str,
    compiled: CompiledTemplate,
    chosen: CompiledTask,
    workflow_id: str,
    run_id: str,
    upstream: dict[str, str],
    *,
    origin: Origin = "local",
) -> TaskRecord:
    """Returns what `task.json` says of a task that is submitted now."""
    return TaskRecord(
        task_id=task_id,
        workflow_id=workflow_id,
        run_id=run_id,
        template=dict(compiled.document),
        template_name=compiled.metadata.name,
        node=chosen.task.name,
        task_type=chosen.task.spec.task_type,
        spec=chosen.task.spec.model_dump(mode="json", by_alias=True),
        upstream=upstream,
        submitted_at=datetime.now(UTC),
        mloc_version=__version__,
        origin=origin,
        partition=compiled.partition,
    )
