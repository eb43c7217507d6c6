"""Opening a task from its folder: any process that knows the task id can go on with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from mloc_dagster.compile.compiler import compile_mapping
from mloc_dagster.compile.references import resolve_task
from mloc_dagster.data.upstream import lookup_reference
from mloc_dagster.net.reach import Reach
from mloc_dagster.planning.plan import PLAN_NAME, Plan
from mloc_dagster.results.plan_file import read_plan
from mloc_dagster.results.record import TaskRecord, read_record, submitted_template
from mloc_dagster.results.store import Folder, open_store
from mloc_dagster.results.usage import Rates
from mloc_dagster.schema.task import ModelSpec, RowSpec, Task, TrainingSpec


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
        named = isinstance(spec, ModelSpec | TrainingSpec)
        return spec.model.source.identifier if named else spec.task_type

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
        """What a second of an engine's time on this task costs."""
        return Rates(self.task.spec.resources.cost_per_hour)

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
