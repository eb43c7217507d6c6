"""A template's `partitions` as Dagster's, and which key a run of one may have."""

from __future__ import annotations

from typing import TYPE_CHECKING

import dagster as dg

from mloc_dagster.compile import CompiledTemplate
from mloc_dagster.errors import InputError, nearest_hint
from mloc_dagster.schema import (
    ColumnPartitions,
    DailyPartitions,
    DynamicPartitions,
    HourlyPartitions,
    MonthlyPartitions,
    StaticPartitions,
    TimePartitions,
    WeeklyPartitions,
)

if TYPE_CHECKING:
    from mloc_dagster.assets.placement import Placement


def partitions_of(
    compiled: CompiledTemplate, placement: Placement | None = None
) -> dg.PartitionsDefinition | None:
    """Returns the partitions of a template's assets; those of its placement come first."""
    if placement is not None and placement.partitions_def is not None:
        return placement.partitions_def
    partitions = compiled.partitions
    match partitions:
        case None:
            return None
        case StaticPartitions(partition_keys=keys):
            return dg.StaticPartitionsDefinition(list(keys))
        case DynamicPartitions(name=name):
            return dg.DynamicPartitionsDefinition(name=name)
        case ColumnPartitions(partition_keys=None, column=column, name=name):
            return dg.DynamicPartitionsDefinition(name=name or f"{compiled.metadata.name}_{column}")
        case ColumnPartitions(partition_keys=keys):
            return dg.StaticPartitionsDefinition(list(keys or ()))
        case _:
            return _DEFINITIONS[type(partitions)](**partitions.model_dump(exclude={"type"}))


_DEFINITIONS: dict[type[TimePartitions], type[dg.TimeWindowPartitionsDefinition]] = {
    HourlyPartitions: dg.HourlyPartitionsDefinition,
    DailyPartitions: dg.DailyPartitionsDefinition,
    WeeklyPartitions: dg.WeeklyPartitionsDefinition,
    MonthlyPartitions: dg.MonthlyPartitionsDefinition,
}


def check_partition(compiled: CompiledTemplate) -> None:
    """Makes sure that the partition that a template was compiled for is one of its own.

    Raises:
        InputError: If it is none, or if one is missing or given in vain.
    """
    name, key = compiled.metadata.name, compiled.partition
    definition = partitions_of(compiled)
    if definition is None:
        if key is not None:
            raise InputError(
                f"{name} has no partitions, and cannot run the partition {key!r}: say"
                " spec.partitions in the template"
            )
        return
    if key is None:
        raise InputError(
            f"{name} has {_described(compiled)}: say which with --partition KEY, in Python with"
            f" partition=KEY{_choices(definition)}"
        )
    if not _has(definition, key):
        raise InputError(f"{name} has no partition {key!r}{_choices(definition, key)}")


def add_partition(compiled: CompiledTemplate, instance: dg.DagsterInstance) -> bool:
    """Has Dagster know the partition of a run, where partitions are added as they come.

    Returns:
        Whether it was not there before.
    """
    definition, key = partitions_of(compiled), compiled.partition
    if not isinstance(definition, dg.DynamicPartitionsDefinition) or key is None:
        return False
    name = definition.name or ""
    if instance.has_dynamic_partition(name, key):
        return False
    instance.add_dynamic_partitions(name, [key])
    return True


def remove_partition(compiled: CompiledTemplate, instance: dg.DagsterInstance) -> None:
    """Takes a partition back that `add_partition` has added."""
    definition, key = partitions_of(compiled), compiled.partition
    if isinstance(definition, dg.DynamicPartitionsDefinition) and key is not None:
        instance.delete_dynamic_partition(definition.name or "", key)


def _described(compiled: CompiledTemplate) -> str:
    match compiled.partitions:
        case TimePartitions(period=period):
            return f"a partition for each {period}"
        case ColumnPartitions(column=column):
            return f"a partition for each value of the column {column!r}"
        case _:
            return "partitions"


def _has(definition: dg.PartitionsDefinition, key: str) -> bool:
    if isinstance(definition, dg.DynamicPartitionsDefinition):
        return bool(key)  # whatever it is, it is added
    return definition.has_partition_key(key)


def _choices(definition: dg.PartitionsDefinition, key: str | None = None) -> str:
    """Returns the partitions there are, as the end of a message."""
    if isinstance(definition, dg.DynamicPartitionsDefinition):
        return ""
    if isinstance(definition, dg.TimeWindowPartitionsDefinition):
        first, last = definition.get_first_partition_key(), definition.get_last_partition_key()
        if first is None or last is None:
            return "; none is over yet"
        return f"; they go from {first} to {last}, the newest that is over"
    return nearest_hint(key or "", definition.get_partition_keys())
