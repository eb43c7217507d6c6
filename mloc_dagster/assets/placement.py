"""Where a template's assets stand among the assets of a project, and what they are called."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import dagster as dg

from mloc_dagster.compile import CompiledTask, CompiledTemplate
from mloc_dagster.ops import checks_of, op_name, sources_of
from mloc_dagster.schema import TrainingSpec


@dataclass(frozen=True, slots=True)
class Placement:
    """What a project says of a template's assets, beyond what the template says.

    Attributes:
        key_prefix: What their keys start with.
        group_name: Their group; by default the template's name.
        deps: Assets that the template's first tasks wait for and do not read.
        rows_from: The asset that holds the rows of its first task.
        partitions_def: Their partitions, instead of the template's own; `${partition_key}` in the
            template is the one of a run.
        backfill_policy: Whether a run computes one partition or several.
        automation_condition: When they are materialized by themselves.
        freshness_policy: How old they may be.
        owners: Owners beside the template's.
        tags: Tags beside the template's labels.
    """

    key_prefix: tuple[str, ...] = ()
    group_name: str | None = None
    deps: tuple[dg.AssetKey, ...] = ()
    rows_from: dg.AssetKey | None = None
    partitions_def: dg.PartitionsDefinition | None = None
    backfill_policy: dg.BackfillPolicy | None = None
    automation_condition: dg.AutomationCondition | None = None
    freshness_policy: dg.FreshnessPolicy | None = None
    owners: tuple[str, ...] = ()
    tags: Mapping[str, str] = field(default_factory=dict)


IN_LIBRARY = Placement()
"""Of a template that stands for itself, in the library or as it was submitted."""


def prefix_of(key_prefix: str | Sequence[str] | None) -> tuple[str, ...]:
    """Returns the parts of a prefix of keys, which Dagster also takes as one text."""
    return (key_prefix,) if isinstance(key_prefix, str) else tuple(key_prefix or ())


@dataclass(frozen=True, slots=True)
class PlacedTask:
    """A task of a template, at its place.

    Attributes:
        compiled: The template.
        node: The task.
        placement: The place.
    """

    compiled: CompiledTemplate
    node: CompiledTask
    placement: Placement = IN_LIBRARY

    @property
    def job(self) -> str:
        """The name of the template's job, which tells it from others of a project."""
        return job_name(self.compiled, self.placement)

    @property
    def graph(self) -> str:
        """The name of the task's graph, which starts the keys of its steps.

        It may not be the job's name: Dagster keeps jobs, graphs and ops in one namespace.
        """
        return op_name(f"{self.job}__{'task' if self._alone else self.node.task.name}")

    @property
    def key(self) -> dg.AssetKey:
        """`<template>/<asset>`, or `<template>/<node>_<asset>` with several nodes.

        The asset is `checkpoint` of a training, else `responses`. The UI's graphs show the last
        part of a key only: it has to tell the nodes apart.
        """
        asset = "checkpoint" if isinstance(self.node.task.spec, TrainingSpec) else "responses"
        name = asset if self._alone else f"{self.node.task.name}_{asset}"
        return dg.AssetKey([*self.placement.key_prefix, self.compiled.metadata.name, name])

    @property
    def is_first(self) -> bool:
        """Whether it waits for no other task of its template."""
        return not self.node.task.depends_on

    @property
    def sources(self) -> tuple[dg.AssetSpec, ...]:
        """The data sets and models that it reads; one that the project waits for is its own."""
        return tuple(
            each for each in sources_of(self.node.task.spec) if each.key not in self.placement.deps
        )

    @property
    def waits_for(self) -> tuple[dg.AssetKey, ...]:
        """The assets that it depends on without being handed what they hold."""
        deps = self.placement.deps if self.is_first else ()
        return (*deps, *(each.key for each in self.sources))

    def other(self, name: str) -> PlacedTask:
        """Returns another task of the template."""
        node = next(each for each in self.compiled.tasks if each.task.name == name)
        return PlacedTask(self.compiled, node, self.placement)

    def check_specs(self) -> list[dg.AssetCheckSpec]:
        """Returns the checks of the asset; while one fails, nothing reads the result."""
        return [
            dg.AssetCheckSpec(name, asset=self.key, description=text, blocking=True)
            for name, text in checks_of(self.node.task.spec).texts.items()
        ]

    @property
    def _alone(self) -> bool:
        return len(self.compiled.tasks) == 1


def placed_tasks(compiled: CompiledTemplate, placement: Placement = IN_LIBRARY) -> list[PlacedTask]:
    """Returns the tasks of a template, in order."""
    return [PlacedTask(compiled, node, placement) for node in compiled.tasks]


def job_name(compiled: CompiledTemplate, placement: Placement = IN_LIBRARY) -> str:
    """Returns the name of a template's job."""
    return op_name("__".join([*placement.key_prefix, compiled.metadata.name]))
