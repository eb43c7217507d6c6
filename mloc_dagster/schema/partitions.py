"""The `partitions` of a template's own spec: Dagster's, by Dagster's option names."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from mloc_dagster.schema.base import Block
from mloc_dagster.schema.resources import TimeZone

_REFUSED = re.compile(r"\.\.\.|[\x00-\x1f]")


def _partition_key(value: str) -> str:
    if not value or _REFUSED.search(value):
        raise ValueError(f"{value!r} is no key: Dagster takes no '...', no control character")
    return value


def _different(values: tuple[str, ...]) -> tuple[str, ...]:
    # Here, since pydantic's own bound does not count keys that are wrong.
    if not values:
        raise ValueError("expected at least one key")
    twice = next((each for place, each in enumerate(values) if each in values[:place]), None)
    if twice is not None:
        raise ValueError(f"the key {twice!r} stands there twice")
    return values


PartitionKeys = Annotated[
    tuple[Annotated[str, AfterValidator(_partition_key)], ...],
    Field(json_schema_extra={"minItems": 1}),
    AfterValidator(_different),
]


class TimePartitions(Block):
    """A partition for each span of time."""

    period: ClassVar[str]
    form: ClassVar[str] = "%Y-%m-%d"

    start_date: str
    """When the first begins: `2026-01-01`, of hours `2026-01-01-00:00`."""

    end_date: str | None = None
    """When the last ends; without it there is one more with each that is over."""

    timezone: TimeZone = "UTC"
    """An IANA name such as `Europe/Berlin`."""

    minute_offset: int = Field(default=0, ge=0, le=59)
    """Minutes past the hour at which each begins."""

    end_offset: int = 0
    """How many more there are than those that are over: with 1 the current one, too."""

    @field_validator("start_date", "end_date")
    @classmethod
    def _of_the_form(cls, value: str | None) -> str | None:
        if value is None:
            return None
        try:
            read = datetime.strptime(value, cls.form)  # Dagster adds the zone
        except ValueError:
            read = None
        # Dagster's keys have all digits: `2026-1-1` would be none of them.
        if read is None or read.strftime(cls.form) != value:
            example = datetime(2026, 1, 31).strftime(cls.form)
            raise ValueError(f"{value!r} is not of the form {example}")
        return value

    @model_validator(mode="after")
    def _in_order(self) -> TimePartitions:
        if self.end_date is not None and self.end_date <= self.start_date:  # all digits are there
            raise ValueError(f"end_date {self.end_date} does not come after {self.start_date}")
        return self


class HourlyPartitions(TimePartitions):
    """A partition for each hour, such as `2026-01-31-14:00`."""

    period = "hour"
    form = "%Y-%m-%d-%H:%M"

    type: Literal["hourly"]


class DailyPartitions(TimePartitions):
    """A partition for each day, such as `2026-01-31`."""

    period = "day"

    type: Literal["daily"]
    hour_offset: int = Field(default=0, ge=0, le=23)
    """The hour at which each begins."""


class WeeklyPartitions(TimePartitions):
    """A partition for each week, named by its first day."""

    period = "week"

    type: Literal["weekly"]
    hour_offset: int = Field(default=0, ge=0, le=23)
    """The hour at which each begins."""

    day_offset: int = Field(default=0, ge=0, le=6)
    """The day on which each begins; 0 is Sunday."""


class MonthlyPartitions(TimePartitions):
    """A partition for each month, named by its first day."""

    period = "month"

    type: Literal["monthly"]
    hour_offset: int = Field(default=0, ge=0, le=23)
    """The hour at which each begins."""

    day_offset: int = Field(default=1, ge=1, le=31)
    """The day of the month on which each begins."""


class StaticPartitions(Block):
    """A partition for each of some names."""

    type: Literal["static"]
    partition_keys: PartitionKeys
    """Their keys."""


class DynamicPartitions(Block):
    """Partitions that are added while the project runs."""

    type: Literal["dynamic"]
    name: str = Field(min_length=1)
    """What Dagster calls them; templates and assets of one name share them."""


class ColumnPartitions(Block):
    """A partition for each value of a column: its runs read the rows that hold it."""

    type: Literal["column"]
    column: str = Field(min_length=1)
    """The column of the data sets that the tasks read."""

    partition_keys: PartitionKeys | None = None
    """Its values, as text; without them each is added when it is run first."""

    name: str | None = Field(default=None, min_length=1)
    """Without `partition_keys`: what Dagster calls them; by default `<template>_<column>`."""

    @model_validator(mode="after")
    def _one_form(self) -> ColumnPartitions:
        if self.partition_keys is not None and self.name is not None:
            raise ValueError("name is that of partitions without partition_keys; remove one")
        return self


Partitions = Annotated[
    HourlyPartitions
    | DailyPartitions
    | WeeklyPartitions
    | MonthlyPartitions
    | StaticPartitions
    | DynamicPartitions
    | ColumnPartitions,
    Field(discriminator="type"),
]


class Partitioned(Block):
    """What a template's own spec says of its partitions."""

    partitions: Partitions
    """Partitions of the template's assets; `${partition_key}` is the run's own."""
