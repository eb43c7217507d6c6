"""What a training's process says to the worker that started it: a line of JSON each."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import msgspec

PIPE_VARIABLE = "MLOC_TRAINING_PIPE"
"""Tells each process which of its files its messages go to."""

LIFELINE_VARIABLE = "MLOC_TRAINING_LIFELINE"
"""Tells each process which of its files closes when the worker is gone."""

Figures = dict[str, float]


class Progress(msgspec.Struct, tag="progress", frozen=True):
    """Optimiser steps are done.

    Attributes:
        step: How many.
        total: How many there will be; 0 while that is unknown.
        metrics: What was logged there.
    """

    step: int
    total: int
    metrics: Figures


class LogLine(msgspec.Struct, tag="log", frozen=True):
    """Something for the task's own log file."""

    text: str


class Saved(msgspec.Struct, tag="checkpoint", frozen=True):
    """A checkpoint is complete.

    Attributes:
        path: Its folder, which is the worker's from now on.
        step: Optimiser steps done.
    """

    path: str
    step: int


class Evaluated(msgspec.Struct, tag="evaluation", frozen=True):
    """The model was measured outside of the training's steps."""

    when: Literal["before", "after"]
    metrics: Figures


class Finished(msgspec.Struct, tag="finished", frozen=True):
    """The training is done.

    Attributes:
        steps: Optimiser steps, those of earlier attempts included.
        metrics: Closing figures.
        history: What was logged, in order.
        dataset_size: Rows that it trained on.
        device: What it ran on.
        model_revision: Which weights it began with.
        final: The folder with the final weights, below the job's folder; empty if none were kept.
    """

    steps: int
    metrics: Figures
    history: list[Figures]
    dataset_size: int
    device: str = ""
    model_revision: str = ""
    final: str = ""


class Failed(msgspec.Struct, tag="failed", frozen=True):
    """The training cannot go on.

    Attributes:
        error: The name of one of our errors.
        message: What it says.
        at: When, on the machine's clock that only goes forward: the first failure of several
            processes is the cause of the others.
    """

    error: str
    message: str
    at: float = 0.0


def finite(figures: Mapping[str, float]) -> Figures:
    """Returns the figures that are numbers: JSON has no others."""
    return {name: float(each) for name, each in figures.items() if math.isfinite(each)}


Message = Progress | LogLine | Saved | Evaluated | Finished | Failed

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Message).decode


def encode_line(message: Message) -> bytes:
    """Returns a message as a line."""
    return _encode(message) + b"\n"


def decode_line(line: bytes) -> Message:
    """Returns the message of a line.

    Raises:
        msgspec.MsgspecError: If it is none.
    """
    return _decode(line)
