"""The echo task type repeats its input: the fake that users, tests and benchmarks share."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from itertools import cycle, islice
from random import Random
from typing import ClassVar

from pydantic import Field

from mloc_dagster.errors import TaskCancelled, TransientError
from mloc_dagster.executors.base import Caller, ModelKey, ShardContext, ShardInput
from mloc_dagster.executors.budget import most_new_tokens, seconds_spent
from mloc_dagster.executors.prompts import last_user_text
from mloc_dagster.planning import shard_key
from mloc_dagster.results import InputRow, OutputRow, Rates, failed_row
from mloc_dagster.schema import Block, Idle, Limits, RowSpec, TaskType

ENGINE = "echo"
ROWS_PER_LOOK = 256  # asking whether to stop may cost far more than echoing a row
SECONDS_PER_LOOK = 0.1
_WORD = re.compile(r"\s*\S+|\s+")


class Echo(Block):
    """Programs the echo task type, which repeats its input: for tests, demos and benchmarks."""

    delay_s: float = Field(default=0.0, ge=0)
    """Seconds each row takes."""

    fail_rate: float = Field(default=0.0, ge=0, le=1)
    """Chance that an attempt at a shard fails half-way (a transient failure)."""

    poison: tuple[int, ...] = ()
    """Indexes of rows that always end with an error."""

    output_tokens: int | None = Field(default=None, ge=0)
    """Words per output; by default the input's own."""

    seed: int = 0
    """Seed of the failures."""

    error_budget: float = Field(default=0.01, ge=0, le=1)
    """Share of rows that may end with an error, as for inference."""


class EchoSpec(RowSpec):
    """Repeats its input."""

    block_name: ClassVar[str] = "echo"
    row_limits: ClassVar[frozenset[str]] = frozenset(Limits.model_fields)

    echo: Echo = Echo()

    @property
    def rows_are_alike(self) -> bool:
        """What fails on purpose does so by the row's place."""
        return not self.echo.fail_rate and not self.echo.poison


class EchoExecutor:
    """Answers each row with its own text, programmed by the template's `echo` block.

    Tokens are words. A chat is answered with the last thing its user said. Whether an attempt
    fails depends on the seed, the shard and the attempt alone, so a failing run fails again.
    """

    def model_key(self, spec: EchoSpec) -> ModelKey | None:
        """Returns None: there is no model."""
        return None

    def load(self, spec: EchoSpec) -> None:
        """Loads nothing."""

    def unload(self, model: None) -> None:
        """Frees nothing."""

    def run(self, shard: ShardInput, spec: EchoSpec, model: None, context: ShardContext) -> None:
        """Echoes every row; half-way through it may fail, if the template says so.

        Raises:
            TransientError: For an attempt that `fail_rate` picked.
            TaskCancelled: If the task was asked to stop.
        """
        echo = spec.echo
        fail_at = shard.count // 2 if _attempt_fails(echo, shard) else -1
        delay_s = _delay_s(spec)
        for done, row in enumerate(shard.rows):
            if done == fail_at:
                raise TransientError(
                    f"echo failed on purpose in shard {shard_key(shard.index)}, "
                    f"attempt {shard.attempt} (fail_rate {echo.fail_rate})"
                )
            if delay_s:
                _wait(delay_s, context.cancelled)
            elif done % ROWS_PER_LOOK == 0 and context.cancelled():
                raise TaskCancelled(f"stopped after {done} rows")
            context.emit(_answer(row, spec))

    def answer(
        self, rows: Sequence[InputRow], spec: EchoSpec, model: None, caller: Caller
    ) -> Sequence[OutputRow]:
        """Echoes the rows of a call; streamed text comes word by word.

        Raises:
            TaskCancelled: If the caller has gone.
        """
        answered: list[OutputRow] = []
        for choice, row in enumerate(rows):
            _wait(_delay_s(spec), caller.cancelled)
            answered.append(_answer(row, spec))
            for word in _WORD.findall(answered[-1].output) if caller.stream else ():
                caller.text(choice, word)
        return answered


def _attempt_fails(echo: Echo, shard: ShardInput) -> bool:
    return Random(f"{echo.seed}:{shard.index}:{shard.attempt}").random() < echo.fail_rate  # noqa: S311 - repeatable on purpose


def _delay_s(spec: EchoSpec) -> float:
    longest_s = spec.budget.per_row.seconds
    return spec.echo.delay_s if longest_s is None else min(spec.echo.delay_s, longest_s)


def _answer(row: InputRow, spec: EchoSpec) -> OutputRow:
    echo, limits = spec.echo, spec.budget.per_row
    if row.error is not None:
        return failed_row(row, row.error, ENGINE)
    if row.index in echo.poison:
        return failed_row(row, "poisoned row: the template lists it under echo.poison", ENGINE)
    if limits.seconds is not None and limits.seconds < echo.delay_s:
        return failed_row(row, seconds_spent(limits.seconds), ENGINE)
    return _echo(row, spec)


def _echo(row: InputRow, spec: EchoSpec) -> OutputRow:
    echo, text = spec.echo, last_user_text(row.prompt)
    words = text.split()
    count = wanted = len(words)
    if echo.output_tokens is not None:
        wanted = echo.output_tokens
    try:
        room = most_new_tokens(spec.budget.per_row, Rates.of(spec.resources), count)
    except ValueError as error:
        return failed_row(row, str(error), ENGINE)
    cut = room is not None and room < wanted
    written = room if cut and room is not None else wanted
    if cut or echo.output_tokens is not None:
        text = " ".join(islice(cycle(words or ["echo"]), written))
    return OutputRow(
        index=row.index,
        prompt=row.prompt,
        output=text,
        finish_reason="length" if cut else "stop",
        prompt_tokens=count,
        completion_tokens=written,
        latency_s=echo.delay_s,
        engine=ENGINE,
        engine_s=echo.delay_s,
        custom_id=row.custom_id,
    )


def _wait(seconds: float, cancelled: Callable[[], bool]) -> None:
    until = time.monotonic() + seconds
    while True:
        if cancelled():
            raise TaskCancelled("stopped while a row was waiting")
        remaining = until - time.monotonic()
        if remaining <= 0:
            return
        time.sleep(min(remaining, SECONDS_PER_LOOK))


ECHO = TaskType(
    name="echo",
    spec=EchoSpec,
    executor=EchoExecutor,
    kinds=("EchoTask",),
    idle=(
        Idle(
            "echo.seed",
            "fail_rate is 0: no failure is drawn",
            (EchoSpec,),
            lambda spec, _: spec.echo.fail_rate == 0,
        ),
    ),
)
