"""Where a task may run, and how often it is tried."""

from __future__ import annotations

import re
from typing import Annotated, Literal
from zoneinfo import available_timezones

from pydantic import AfterValidator, Field, field_validator

from mloc_dagster.errors import nearest_hint
from mloc_dagster.schema.base import Block, Cores, Memory

_CRON_FIELDS = (
    ("minute", 0, 59),
    ("hour", 0, 23),
    ("day of the month", 1, 31),
    ("month", 1, 12),
    ("day of the week", 0, 7),
)
_CRON_PART = re.compile(r"(?:\*|(?P<first>\d{1,2})(?:-(?P<last>\d{1,2}))?)(?:/(?P<step>\d{1,2}))?")


class Gpu(Block):
    """GPUs that each shard needs."""

    count: int = Field(default=0, ge=0)
    """How many; 0 asks for none."""

    type: str = "any"
    """`any`, or a device name such as `nvidia-h100`."""

    memory: Memory | None = None
    """Device memory that each GPU must have."""


class Hardware(Block):
    """What one shard needs of its worker."""

    cpu: Cores | None = None
    memory: Memory | None = None
    gpu: Gpu = Gpu()


class TokenPrices(Block):
    """What a token costs, in any currency: 0.15 for a million tokens is 0.00000015."""

    input: float = Field(ge=0)
    """A token of a prompt."""

    output: float = Field(ge=0)
    """A token that is written; of vectors there are none."""

    cached: float | None = Field(default=None, ge=0)
    """A token of a prompt that is in the prefix cache; by default as any other."""


class Resources(Block):
    """What a task asks of the machines it runs on."""

    hardware: Hardware = Hardware()

    cost_per_hour: float | None = Field(default=None, ge=0)
    """What one worker costs an hour, in any currency; the usage then says what the task cost."""

    cost_per_token: TokenPrices | None = None
    """What tokens cost, where they are paid for and not the time of workers: instead of
    `cost_per_hour`."""

    pool: str | None = Field(default=None, pattern=r"^[A-Za-z0-9_/]+$")
    """Dagster pool of its shards: `dagster instance concurrency set NAME N` lets at most N run at
    once, over all runs. By default the model's name, with `_` for what Dagster refuses."""


_MOST_SHARDS = 8
"""Where a template does not say."""


class Parallel(Block):
    """How a task is cut into shards."""

    enabled: bool = True
    """`false` runs the whole task as one shard."""

    max_shards: int | None = Field(default=None, ge=1, le=1024)
    """At most this many shards; fewer rows give fewer shards. By default 8, and for an agent no
    more than it takes to have `agent.concurrency` rows in each, which share a batch."""

    strategy: Literal["rows", "tokens"] | None = None
    """`rows`: contiguous ranges of rows, sizes differing by at most one. `tokens`: rows with
    common beginnings together, as many expected tokens in each shard. By default `tokens` where a
    model reads the rows, else `rows`; results are in input order either way."""

    @property
    def shards(self) -> int:
        """The upper bound that holds: 1 when sharding is off."""
        return (self.max_shards or _MOST_SHARDS) if self.enabled else 1


class Retries(Block):
    """Automatic retries of a shard: linear backoff, `delay_s × attempt`, capped."""

    max: int = Field(default=3, ge=0, le=3)
    """Retries after the first attempt."""

    delay_s: float = Field(default=5.0, ge=0)
    """Seconds before the first retry; the n-th waits n times as long."""

    max_delay_s: float = Field(default=120.0, ge=0, le=120)
    """No wait is longer than this."""

    def wait_s(self, attempt: int) -> float:
        """Seconds to wait after failed attempt number `attempt` (from 1)."""
        return min(self.delay_s * attempt, self.max_delay_s)


class Slo(Block):
    """Within which time a task should be done."""

    seconds: float = Field(gt=0, le=10 * 365 * 86_400)
    """Seconds from submission to the last result; ten years at most."""


def _known_zone(value: str) -> str:
    zones = available_timezones()
    if value not in zones:
        raise ValueError(f"unknown timezone {value!r}{nearest_hint(value, zones)}")
    return value


TimeZone = Annotated[str, AfterValidator(_known_zone)]
"""An IANA name of a time zone."""


class Schedule(Block):
    """Runs the template at set times, as a Dagster schedule."""

    cron: str
    """Five cron fields, such as `0 6 * * 1-5`."""

    timezone: TimeZone = "UTC"
    """An IANA name such as `Europe/Berlin`."""

    enabled: bool = True
    """Whether `mloc up` switches it on; `dagster dev` leaves that to you. Later the UI decides."""

    @field_validator("cron")
    @classmethod
    def _five_fields(cls, value: str) -> str:
        fields = value.split()
        if len(fields) != len(_CRON_FIELDS):
            raise ValueError(f"{value!r} has {len(fields)} fields; cron has five: '0 6 * * 1-5'")
        for text, (name, low, high) in zip(fields, _CRON_FIELDS, strict=True):
            if not all(_is_cron_part(part, low, high) for part in text.split(",")):
                raise ValueError(f"{text!r} is no {name} ({low} to {high}, '*', '1-5', '*/10')")
        return value


def _is_cron_part(part: str, low: int, high: int) -> bool:
    match = _CRON_PART.fullmatch(part)
    if match is None or match["step"] == "0":
        return False
    numbers = [int(match[name]) for name in ("first", "last") if match[name] is not None]
    return all(low <= number <= high for number in numbers) and numbers == sorted(numbers)
