"""What a task type is: one descriptor, found by entry point, from which everything else follows.

A distribution registers its descriptor under the group `mloc_dagster.task_types`, with the task
type's name; mloc's own come in the same way. Compiling, JSON Schema, docs, references, batching,
the API and the CLI know task types from here only.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from mloc_dagster.plugins import TASK_TYPES_GROUP, Registry
from mloc_dagster.schema.legacy import KeyPath
from mloc_dagster.schema.result import LoraTrainingResult, RowsResult
from mloc_dagster.schema.task import RowSpec, TaskSpec, TrainingSpec

ANY_TRAINING = "TrainingTask"
"""The kind that says no more than that something is trained: `taskType` says what."""

Condition = Callable[[Any, str], bool]
"""Takes a task's spec and the field's own name; true where the field has no effect."""


@dataclass(frozen=True, slots=True)
class Idle:
    """A field that has no effect.

    Attributes:
        field: Its place below the spec; `*` stands for every key.
        why: The reason, as the end of "… has no effect: ".
        specs: The specs that it concerns, with those that derive from them.
        when: Under which condition; by default always.
    """

    field: str
    why: str
    specs: tuple[type[TaskSpec], ...] = (TaskSpec,)
    when: Condition | None = None
    path: KeyPath = dataclasses.field(init=False, compare=False)
    """The field's place, step by step."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", tuple(self.field.split(".")))

    def holds(self, spec: object, name: str) -> bool:
        """Tells whether the field has no effect in a task."""
        return isinstance(spec, self.specs) and (self.when is None or self.when(spec, name))


@dataclass(frozen=True, slots=True)
class Part:
    """One of the tasks that a template stands for.

    What all tasks have, such as `resources`, every part takes from the template; what becomes of
    the result, such as `output`, the last one takes.

    Attributes:
        suffix: Behind the template's name and `-`; the last part has the name alone.
        task_type: What it does.
        takes: Which keys of its spec are which of the template's, both as dotted paths; of several
            the first that is there. A value goes to the key that names it most closely.
        where: The block without which there is no such part, as a dotted path; empty if there
            always is.
        rows_of: Parts whose rows it takes: the first of them that there is.
        after: A part that has to end before it, where there is such.
        gives: Values of keys of its spec where the template has a block: `{key: (block, value)}`.
    """

    suffix: str
    task_type: str
    takes: Mapping[str, str | tuple[str, ...]]
    where: str = ""
    rows_of: tuple[str, ...] = ()
    after: str = ""
    gives: Mapping[str, tuple[str, str]] = dataclasses.field(
        default_factory=dict[str, tuple[str, str]]
    )


@dataclass(frozen=True, slots=True)
class LibraryText:
    """A text that the library gives where a template gives none.

    Attributes:
        block: The block of the spec that has it.
        key: Its key there.
        names: Takes the block; returns the files of the library's `prompts/` that it is made of.
        chosen_by: The key of the block by which a template names its file; empty if none does.
    """

    block: str
    key: str
    names: Callable[[Any], tuple[str, ...]]
    chosen_by: str = ""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TaskType:
    """A task type.

    Attributes:
        name: What `taskType` says; also the name of its entry point.
        spec: Its block of YAML, a class of its own that derives from `RowSpec`, `ModelSpec` or
            `TrainingSpec`. The first paragraph of its docstring describes the task type.
        executor: Makes what computes it: a `TaskExecutor`, of a training a `Trainer`. Heavy
            imports belong in there. None for a task type whose templates can be checked only.
        kinds: Values of `kind` that may stand on its templates. One that no other task type has
            makes `taskType` superfluous.
        result: What stands under `result` in `responses.json`, to which references are checked.
        exclusive: Keys of its spec that replace each other where a node is merged over its base.
        idle: Fields of its own that have no effect under some condition, for warnings and docs.
        report: Takes a task's spec; makes what tells of its rows beside the rows themselves, a
            `TaskReport`. None where there is nothing more to tell.
        preset: The key that names a preset, and the folder of the library where presets are: each
            a template of this task type, over whose spec a task's own is laid.
        whole_keys: Blocks that replace the preset's as a whole.
        files: Files and folders that the report can write, for `output.artifacts`.
        counts: Names, in the plural, of what it counts beside rows, such as `turns`: its executor
            tells of them while it works (`ShardContext.count`), and its report in the end.
        text: A text that the library gives where a template gives none.
        parts: The tasks that a template of this type stands for, instead of an `executor`.
        check: Takes a task's spec and those of the template's other tasks, before any of them is
            begun; raises what would keep it from working.
        prepare: Takes a task's spec, its folder, and those of the tasks that it waits for by node,
            before its input is spooled: writes down there what its rows depend on beside that.
        conclude: Takes a task's spec, folder and plan when all rows are there and neither errors
            nor a gate refuse them; returns what stands in `result` besides. It may be called
            again for the same rows.
    """

    name: str
    spec: type[TaskSpec]
    executor: Callable[[], Any] | None
    kinds: tuple[str, ...] = ()
    result: type[BaseModel] | None = None
    exclusive: tuple[frozenset[str], ...] = ()
    idle: tuple[Idle, ...] = ()
    report: Callable[[Any], Any] | None = None
    preset: tuple[str, str] | None = None
    whole_keys: frozenset[str] = frozenset()
    files: frozenset[str] = frozenset()
    counts: tuple[str, ...] = ()
    text: LibraryText | None = None
    parts: tuple[Part, ...] = ()
    check: Callable[[Any, Sequence[TaskSpec]], None] | None = None
    prepare: Callable[[Any, Any, Mapping[str, Any]], None] | None = None
    conclude: Callable[[Any, Any, Any], Mapping[str, Any]] | None = None

    @property
    def has_rows(self) -> bool:
        """Whether its result is one output for each row."""
        return issubclass(self.spec, RowSpec)

    @property
    def trains(self) -> bool:
        """Whether its result is weights."""
        return issubclass(self.spec, TrainingSpec)

    @property
    def takes_rows_of_a_stage(self) -> bool:
        """Whether a stage without `data` works on the rows of the stage before it."""
        return self.has_rows and self.spec.model_fields["data"].is_required()

    @property
    def result_type(self) -> type[BaseModel]:
        """The model of its result."""
        return self.result or (LoraTrainingResult if self.trains else RowsResult)


def task_types() -> Mapping[str, TaskType]:
    """Returns every task type that can be used, by name; trainings last."""
    return _REGISTRY.known()


def find_task_type(name: str) -> TaskType:
    """Returns the task type of a name.

    Raises:
        UnknownNameError: If nobody registered that name.
        TerminalError: If two distributions did, or the one that did cannot be loaded.
    """
    return _REGISTRY.find(name)


def spec_of(mapping: Mapping[str, Any]) -> Any:
    """Returns a whole spec as the block of the task type that it names.

    Raises:
        UnknownNameError: If nobody registered that task type.
        TerminalError: If it cannot be loaded.
        pydantic.ValidationError: If the spec does not fit it.
    """
    return find_task_type(str(mapping.get("taskType"))).spec.model_validate(mapping)


def types_of_kind(kind: str) -> tuple[TaskType, ...]:
    """Returns the task types whose templates may carry a `kind`; none if there is no such."""
    return tuple(each for each in task_types().values() if kind in each.kinds)


def all_kinds() -> tuple[str, ...]:
    """Returns every value that `kind` may have."""
    return tuple(dict.fromkeys(kind for each in task_types().values() for kind in each.kinds))


def _refuse(given: TaskType, others: Collection[TaskType]) -> str | None:
    for other in others:
        if other.spec is given.spec:  # the JSON Schema says of each class which taskType it is
            return f"has the spec of {other.name!r}: derive a class from {given.spec.__name__}"
    return None


def _order(each: TaskType) -> tuple[bool, str]:
    return each.trains, each.name


_REGISTRY = Registry(TASK_TYPES_GROUP, "task type", TaskType, _refuse, _order)
