"""How text is generated."""

from __future__ import annotations

from pydantic import Field, field_validator

from mloc_dagster.schema.base import Block


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

    stop_token_ids: tuple[int, ...] = ()
    """Generation ends with any of these."""

    ignore_eos: bool = False
    """Go on after the end-of-text token."""

    seed: int | None = None
    """Same seed, same output, however the task is sharded; without it `mloc` picks one a task."""

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

    error_budget: float = Field(default=0.01, ge=0, le=1)
    """Share of rows that may end with an error before the task fails; any share above 0 allows
    at least one row, and never all of them."""

    @field_validator("stop", mode="before", json_schema_input_type=str | tuple[str, ...])
    @classmethod
    def _one_stop(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value

    @property
    def greedy(self) -> bool:
        """Whether the most likely token is always taken."""
        return self.temperature == 0 or self.do_sample is False


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
