"""How rows are answered: with text, with a vector, or with their texts in order."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field, JsonValue, field_validator, model_validator

from mloc_dagster.schema.base import Block
from mloc_dagster.schema.tools import FunctionTool, ToolChoice


class StructuredOutputs(Block):
    """What every answer has to look like, with vLLM's names; give exactly one."""

    json_schema: Mapping[str, JsonValue] | None = Field(default=None, alias="json")
    """A JSON Schema that the answer fits."""

    json_object: Literal[True] | None = None
    """Any JSON object."""

    regex: str | None = None
    """A regular expression that matches the whole answer."""

    choice: tuple[str, ...] | None = Field(default=None, min_length=1)
    """The answer is one of these."""

    grammar: str | None = None
    """A grammar in EBNF, as xgrammar reads it."""

    @model_validator(mode="after")
    def _one_form(self) -> StructuredOutputs:
        given = [name for name, value in self if value is not None]
        if len(given) != 1:
            raise ValueError("give exactly one of json, json_object, regex, choice and grammar")
        return self


class Inference(Block):
    """Sampling, with the names and the meaning of vLLM's `SamplingParams`."""

    system_prompt: str | None = None
    """Put before each row as a system message (chat models) or paragraph."""

    temperature: float = Field(default=0.7, ge=0, le=2)
    """0 is greedy."""

    top_p: float = Field(default=1.0, gt=0, le=1)
    """Only the most likely tokens that make up this share."""

    top_k: int = Field(default=0, ge=-1)
    """0 or -1: all tokens."""

    min_p: float = Field(default=0.0, ge=0, le=1)
    """Only tokens with this share of the likeliest one's probability."""

    max_tokens: int = Field(default=512, ge=1)
    """New tokens per answer at most (`max_new_tokens` means the same)."""

    min_tokens: int = Field(default=0, ge=0)
    """New tokens before generation may end."""

    stop: tuple[str, ...] = ()
    """Generation ends before any of these; the stop string is not part of the output."""

    stop_token_ids: tuple[Annotated[int, Field(ge=0)], ...] = ()
    """Generation ends with any of these."""

    ignore_eos: bool = False
    """Go on after the end-of-text token."""

    seed: int | None = None
    """Same seed and same row, same output, however the task is sharded. Without it `mloc` picks
    one a task, and rows that are alike get answers of their own."""

    n: int = Field(default=1, ge=1, le=64)
    """Answers per row."""

    repetition_penalty: float = Field(default=1.0, gt=0)
    """Above 1: repeat less, counting the prompt."""

    presence_penalty: float = Field(default=0.0, ge=-2, le=2)
    """Above 0: prefer tokens that the answer lacks."""

    frequency_penalty: float = Field(default=0.0, ge=-2, le=2)
    """Above 0: the more often the answer has a token, the less likely."""

    do_sample: bool | None = None
    """`false` is greedy whatever the temperature."""

    skip_special_tokens: bool = True
    """Leave special tokens out of the output."""

    logprobs: int | None = Field(default=None, ge=0, le=20)
    """Keep each token's log probability, and those of so many likeliest tokens at its place."""

    structured_outputs: StructuredOutputs | None = None
    """Answers of a given form only."""

    tools: tuple[FunctionTool, ...] = ()
    """Functions that the model may call; the calls are the row's `tool_calls`."""

    tool_choice: ToolChoice = "auto"
    """`auto`: the model decides; `none`; `required`: at least one; or the function to call."""

    parallel_tool_calls: bool = True
    """Keep all calls of an answer, and not the first one only."""

    chat_template_kwargs: Mapping[str, JsonValue] = Field(default_factory=dict)
    """Values for the model's chat template, such as `enable_thinking: false`."""

    error_budget: float = Field(default=0.01, ge=0, le=1)
    """Share of rows that may end with an error before the task fails; any share above 0 allows
    at least one row, and never all of them."""

    @field_validator("stop", mode="before", json_schema_input_type=str | tuple[str, ...])
    @classmethod
    def _one_stop(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value

    @property
    def calls_tools(self) -> bool:
        """Whether an answer may be calls of tools."""
        return bool(self.tools) and self.tool_choice != "none"

    @property
    def forces_calls(self) -> bool:
        """Whether an answer has to be calls of tools."""
        return self.calls_tools and self.tool_choice != "auto"

    @property
    def greedy(self) -> bool:
        """Whether the most likely token is always taken."""
        return self.temperature == 0 or self.do_sample is False

    @property
    def draws(self) -> int:
        """How many answers have to be computed for `n`: greedy ones are all the same."""
        return 1 if self.greedy else self.n

    @property
    def deterministic(self) -> bool:
        """Whether equal prompts have equal answers: greedy, or sampled with a given seed."""
        return self.greedy or self.seed is not None


class Pooling(Block):
    """How a text becomes a vector, with vLLM's names."""

    pooling_type: Literal["CLS", "LAST", "MEAN"] | None = None
    """Which tokens' states make the vector; by default as sentence-transformers' files beside
    the model say; without them LAST for decoders and MEAN for encoders."""

    normalize: bool = True
    """Scale each vector to length 1."""

    dimensions: int | None = Field(default=None, ge=1)
    """Keep the first so many numbers (models trained for it)."""

    instruction: str | None = None
    """Put before each text, as some models want it."""

    truncate: bool = False
    """Cut over-long texts at the model's limit instead of refusing the row."""

    error_budget: float = Field(default=0.01, ge=0, le=1)
    """Share of rows that may end with an error, as for inference."""


class Reranking(Block):
    """How texts are put in a better order: a model reads each together with the row."""

    top_k: int = Field(default=5, ge=1, le=1000)
    """Texts that stay, the best first."""

    documents_column: str | None = None
    """The column with a list of texts, where rows come from a dataset and not from a search."""

    error_budget: float = Field(default=0.01, ge=0, le=1)
    """Share of rows that may end with an error."""
