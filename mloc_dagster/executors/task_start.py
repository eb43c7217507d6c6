"""Starting a task: its submission made durable, its input spooled, its shards cut."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import PurePosixPath

from pydantic import JsonValue

from mloc_dagster import __version__
from mloc_dagster.compile.compiler import CompiledTask, CompiledTemplate, compile_mapping
from mloc_dagster.data.openai_request import RequestBlock, Requests
from mloc_dagster.data.spool import spool_input
from mloc_dagster.errors import InputError
from mloc_dagster.executors.input_planning import input_planning, usual_output_tokens
from mloc_dagster.executors.open_task import OpenTask, open_task
from mloc_dagster.executors.operator_leave import check_leave
from mloc_dagster.executors.registry import task_executor
from mloc_dagster.executors.training_plan import plan_training
from mloc_dagster.net.reach import Origin
from mloc_dagster.planning.plan import Plan
from mloc_dagster.results.plan_file import read_plan
from mloc_dagster.results.record import TaskRecord, write_record
from mloc_dagster.results.store import open_store
from mloc_dagster.schema.data import InferenceData, OpenaiBatchData
from mloc_dagster.schema.task import ModelSpec, RowSpec, TrainingSpec


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
) -> tuple[OpenTask, Plan]:
    """Writes `task.json`, then the input and `plan.json`; what is already there is kept.

    Args:
        document: The effective template: overrides applied, references unresolved.
        node: Which of its tasks.
        workflow_id: The id that all tasks of this submission share.
        run_id: The Dagster run.
        upstream: Task ids of the nodes that this one depends on, by node name.
        origin: Where the task comes from.

    Raises:
        UnknownNameError: If nobody registered an executor for the task type.
        TerminalError: If a task of the template, this one or a later, may not run here.
        DataError: If the input is missing, unreadable or empty.
    """
    compiled = compile_mapping(document)
    chosen = next(each for each in compiled.tasks if each.task.name == node)
    task_executor(chosen.task.spec.task_type)
    # All of them: what the last stage may not do is not found after hours of the others.
    check_leave(each.task for each in compiled.tasks)
    task_id = task_id_for(workflow_id, compiled, node)
    folder = open_store().task(task_id)
    if not folder.exists("task.json"):
        record = task_record(
            task_id, compiled, chosen, workflow_id, run_id, dict(upstream), origin=origin
        )
        write_record(folder, record)
    opened = open_task(task_id)
    with opened.reach.applied():
        return opened, read_plan(folder) or _plan(opened)


def _plan(opened: OpenTask) -> Plan:
    if isinstance(opened.task.spec, TrainingSpec):
        return plan_training(opened.folder, opened.record.task_id, opened.task.spec)
    spec = opened.spec
    return spool_input(
        opened.record.task_id,
        input_of(spec),
        opened.folder,
        spec.parallel.shards,
        seed_of(spec),
        opened.upstream,
        input_planning(spec, usual_output_tokens(spec, opened.folder.store)),
    )


def input_of(spec: RowSpec) -> InferenceData:
    """Returns the data block of a task that works row by row."""
    if spec.data is None:
        raise InputError(f"a task of type {spec.task_type!r} needs data")
    if isinstance(spec.data, OpenaiBatchData):
        return Requests(**spec.data.model_dump(), block=_request_block(spec))
    return spec.data


def _request_block(spec: RowSpec) -> RequestBlock:
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
    )
