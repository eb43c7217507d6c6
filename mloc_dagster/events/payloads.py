"""What goes with an event beyond who and when."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, PlainSerializer

from mloc_dagster.redaction import redact


def _redacted(text: str | None) -> str | None:
    return None if text is None else redact(text)


def _is_none(value: object) -> bool:
    return value is None


def _is_zero(value: object) -> bool:
    return value == 0


Reason = Annotated[str | None, PlainSerializer(_redacted)]


class SloMiss(BaseModel):
    """A promise that was not kept."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    seconds: float
    """Seconds that the template allows from submission to the last result."""

    elapsed_s: float
    """Seconds since submission when the miss was noticed."""

    late_s: float
    """How many of them were too many."""


class TrainingFigures(BaseModel):
    """How far a training is."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    step: int
    """Optimiser steps done, those before a resume included."""

    steps: int
    """How many there will be; 0 while that is unknown."""

    steps_per_s: float
    """Steps in a second, in this attempt."""

    metrics: dict[str, float]
    """What was logged last: `loss`, `learning_rate`, …, as the trainer names it."""


class Payload(BaseModel):
    """Numbers and reasons that go with a task's event; what does not apply is 0 or absent."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    rows: int = 0
    """Rows: of the whole task when it starts or succeeds, finished since the last event of the
    shard in TASK_PROGRESS, found from earlier attempts in SHARD_SUCCEEDED."""

    resumed: int = Field(default=0, exclude_if=_is_zero)
    """Rows of the shard that earlier attempts had finished, in its first TASK_PROGRESS."""

    tokens: int = 0
    """Tokens written by the model since the last event of the shard."""

    prompt_tokens: int = Field(default=0, exclude_if=_is_zero)
    """Tokens read by the model since the last event of the shard."""

    cached_tokens: int = Field(default=0, exclude_if=_is_zero)
    """How many of these it found in its prefix cache."""

    reused: int = Field(default=0, exclude_if=_is_zero)
    """Rows since the last event of the shard that took an answer which was there already."""

    errors: int = 0
    """Rows that ended with an error since the last event of the shard."""

    eta_s: float | None = Field(default=None, exclude_if=_is_none)
    """Seconds until the shard's last row, at its speed of late, in TASK_PROGRESS; absent while no
    speed is known."""

    training: TrainingFigures | None = Field(default=None, exclude_if=_is_none)
    """How far a training is, in its TASK_PROGRESS."""

    losses: int = Field(default=0, exclude_if=_is_zero)
    """How many workers this attempt at the shard has lost, in TASK_REQUEUED."""

    reason: Reason = Field(default=None, exclude_if=_is_none)
    """Why, in a sentence; credentials in it are masked."""

    slo: SloMiss | None = Field(default=None, exclude_if=_is_none)
    """The numbers of TASK_SLO_MISSED."""

    slo_s: float | None = Field(default=None, exclude_if=_is_none)
    """Seconds that the template allows from submission to the last result, in TASK_STARTED."""

    due: AwareDatetime | None = Field(default=None, exclude_if=_is_none)
    """When these seconds are over, in TASK_STARTED."""


class WorkerState(StrEnum):
    """What a worker does, as the registry has it."""

    STARTING = "STARTING"
    IDLE = "IDLE"
    RUNNING = "RUNNING"
    DRAINING = "DRAINING"
    STOPPED = "STOPPED"
    LOST = "LOST"


class WorkerPayload(BaseModel):
    """Where a worker runs and what it holds; what does not apply is absent or empty."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    host: str = ""
    """The machine's name."""

    pid: int = 0
    """The process that holds its devices."""

    queues: tuple[str, ...] = ()
    """Where it takes work from."""

    warm_models: tuple[str, ...] = ()
    """Keys of the models it has loaded."""

    running: tuple[str, ...] = ()
    """Tickets it has claimed."""

    since: AwareDatetime | None = Field(default=None, exclude_if=_is_none)
    """When the process began, or for LOST its last heartbeat: what tells two such facts apart."""

    reason: Reason = Field(default=None, exclude_if=_is_none)
    """Why, in a sentence; credentials in it are masked."""
