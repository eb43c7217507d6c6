"""The engine `recorded`: answers that a model gave before, from a file."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

from mloc_dagster.schema import Block, Demand, EngineType, FileRef, Refusal


class RecordedOptions(Block):
    """Answers that a model gave before, for trying a template without one."""

    answers: Annotated[str | None, FileRef()] = None
    """A file of JSON lines with `prompt` and `output`; `tool_calls` and `reasoning` where a model
    called tools and thought."""

    strict: bool = True
    """Whether a prompt that is not in the file is an error of its row; else its answer is empty."""


def refuses(options: RecordedOptions, demand: Demand) -> Iterator[Refusal]:
    """Yields what is wrong with a task that runs on this engine."""
    if demand.certain and options.answers is None:
        yield Refusal(("answers",), "the engine 'recorded' needs answers: a file of JSON lines")


RECORDED = EngineType(
    name="recorded",
    label="recorded answers",
    options=RecordedOptions,
    loader="acme_mloc.recorded_engine:RecordedLoader",
    abilities=frozenset({"generate", "tools"}),
    refuses=refuses,
)
