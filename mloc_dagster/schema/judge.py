"""The task type `judge`: a model says which statements of an answer its passages support."""

from __future__ import annotations

from typing import Annotated, ClassVar, Self

from pydantic import Field, model_validator

from mloc_dagster.schema.base import Block
from mloc_dagster.schema.data import DatasetData, UpstreamData
from mloc_dagster.schema.inference import Inference
from mloc_dagster.schema.task import InferenceSpec

_PROMPT_NAME = r"^[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)*$"
"""No part of it leads out of the folder, whatever a template that was sent asks for."""


class Judging(Block):
    """What a judge is asked."""

    prompt: str = Field(default="judge/faithfulness", pattern=_PROMPT_NAME)
    """The file of the library's `prompts/` that says how to judge."""

    instructions: str | None = None
    """What it says, instead of a file. The passages, the question and the answer follow it."""


class JudgedRows(Judging):
    """What a judge is asked, and which columns of a dataset it judges."""

    output_column: str | None = None
    """The column with the answer, where rows come from a dataset and not from an earlier task."""

    documents_column: str | None = None
    """The column with the list of texts that have to support it; without one, as for rows of an
    earlier task that has found nothing for them, the prompt has to."""


class JudgeInference(Inference):
    """Sampling of verdicts: as of any text, but greedy unless told otherwise."""

    temperature: float = Field(default=0.0, ge=0, le=2)
    """0 is greedy."""

    max_tokens: int = Field(default=1024, ge=1)
    """New tokens per verdict at most: one that is cut off cannot be read."""

    @model_validator(mode="after")
    def _leaves_the_form(self) -> Self:
        for name in ("structured_outputs", "tools"):
            if getattr(self, name):
                raise ValueError(f"{name}: a verdict has a form of its own")
        if self.n > 1:
            raise ValueError("n: a judge says one verdict for each row")
        return self


class JudgeSpec(InferenceSpec):
    """Judges the answer of each row by its passages, and leaves the row as it is."""

    takes: ClassVar[frozenset[str]] = frozenset({"answer"})
    leaves: ClassVar[tuple[str, ...]] = (
        *("retrieved", "citations", "abstained", "citation_error", "left_out", "cut_characters"),
        "judgement",
    )
    deciding: ClassVar[frozenset[str]] = frozenset({"judge"})

    data: Annotated[DatasetData | UpstreamData, Field(discriminator="type")]  # pyright: ignore[reportIncompatibleVariableOverride]
    inference: JudgeInference = JudgeInference()  # pyright: ignore[reportIncompatibleVariableOverride]
    judge: JudgedRows = JudgedRows()

    @model_validator(mode="after")
    def _has_answers(self) -> Self:
        if isinstance(self.data, DatasetData):
            if self.judge.output_column is None:
                raise ValueError("give judge.output_column: the column with the answers to judge")
            return self
        for name in ("output_column", "documents_column"):
            if getattr(self.judge, name) is not None:
                raise ValueError(
                    f"judge.{name} is for rows of a dataset: those of an earlier task bring along"
                    " their answer and what was found for them"
                )
        return self
