"""Endpoints as templates see them: how many requests at a time, how fast, and what goes along."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal

from pydantic import Field, JsonValue, SecretStr, field_validator

from mloc_dagster.schema import Block, Demand, EngineType, Refusal

Dialect = Literal["openai", "vllm"]
"""What a server takes: the options of OpenAI's API, or those of vLLM's server as well."""

OURS = frozenset(
    {
        *("model", "messages", "prompt", "input", "stream", "stream_options", "n", "stop", "seed"),
        *("temperature", "top_p", "max_tokens", "max_completion_tokens", "encoding_format"),
        *("tools", "tool_choice", "parallel_tool_calls", "response_format", "structured_outputs"),
        *("presence_penalty", "frequency_penalty", "logprobs", "top_logprobs", "dimensions"),
    }
)
"""What a request's body says by itself; rows and `inference` decide it."""


class OpenaiOptions(Block):
    """How an endpoint is asked; names are those of the `openai` package where it has them."""

    max_concurrency: int = Field(default=32, ge=1, le=1000)
    """Requests in flight at a time, of each worker."""

    timeout: float = Field(default=600.0, gt=0)
    """Seconds without an answer until a request is sent again."""

    max_retries: int = Field(default=6, ge=0, le=100)
    """How often a request is sent again after 429, 408, 409, a 5xx or a broken connection, with
    growing pauses, or those that `Retry-After` asks for."""

    requests_per_minute: int | None = Field(default=None, ge=1)
    """Most requests that a worker sends a minute."""

    tokens_per_minute: int | None = Field(default=None, ge=1)
    """Most tokens that a worker asks for a minute: the prompt's, by its length, and
    `max_tokens` for each answer."""

    server: Literal["auto", "openai", "vllm"] = "auto"
    """Which options it takes: those of OpenAI's API (`openai`), or those of vLLM's server as well;
    `auto` looks at who owns its models."""

    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] | None = None
    """What it calls the most tokens of an answer; by default `max_completion_tokens` at
    api.openai.com and `max_tokens` elsewhere."""

    extra_body: Mapping[str, JsonValue] = Field(default_factory=dict)
    """Put into each request's body as it is, such as `reasoning_effort: low`."""

    default_headers: Mapping[str, SecretStr] = Field(default_factory=dict)
    """Sent with each request; take secrets from the environment: `${NAME}`."""

    @field_validator("extra_body")
    @classmethod
    def _not_ours(cls, value: Mapping[str, JsonValue]) -> Mapping[str, JsonValue]:
        for name in sorted(OURS & value.keys()):
            raise ValueError(f"{name!r} is set by mloc for each request: remove it")
        return value


def _refuses(options: OpenaiOptions, demand: Demand) -> Iterator[Refusal]:
    if demand.certain and demand.gpus and not demand.enforce_cpu:
        reason = (
            f"resources.hardware.gpu.count asks for {demand.gpus} GPUs, and an endpoint computes "
            "elsewhere: remove it"
        )
        yield Refusal((), reason)


OPENAI = EngineType(
    name="openai",
    label="an OpenAI endpoint",
    options=OpenaiOptions,
    loader="mloc_dagster.executors.engines.openai.engine:OpenaiLoader",
    abilities=frozenset({"generate", "embed", "images", "guided", "logprobs", "tools"}),
    sources=frozenset({"openai"}),
    order=200,
    runs_anywhere=True,
    refuses=_refuses,
    placing=frozenset(
        {
            *("max_concurrency", "timeout", "max_retries", "requests_per_minute"),
            "tokens_per_minute",
        }
    ),
)
