"""Requests as the bodies that an endpoint takes; what it has no word for is refused."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from io import BytesIO
from typing import Any, Literal

from pydantic import JsonValue

from mloc_dagster.errors import InputError
from mloc_dagster.executors.engines.openai.engine_type import Dialect, OpenaiOptions
from mloc_dagster.executors.engines.protocol import EngineRequest
from mloc_dagster.executors.prompts import RowBlock, instruction_of, plain_text, tool_definitions
from mloc_dagster.results import InputRow, Message
from mloc_dagster.schema import Inference, Pooling, StructuredOutputs

Path = Literal["chat", "completions", "embeddings"]

_IMAGE_PARTS = ("image_url", "image")


@dataclass(frozen=True, slots=True)
class Body:
    """A request as it is sent.

    Attributes:
        path: Which call of the API.
        fields: Its body, without `stream`.
    """

    path: Path
    fields: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Server:
    """What is known of an endpoint.

    Attributes:
        model: What it calls the model.
        dialect: Whose options it takes.
        max_tokens_field: What it calls the most tokens of an answer.
        longest: Tokens that prompt and answer may have, where it tells.
        extra: Put into every body.
    """

    model: str
    dialect: Dialect
    max_tokens_field: str
    longest: int | None
    extra: Mapping[str, JsonValue]


def server_of(
    model: str, host: str, options: OpenaiOptions, *, vllm: bool, longest: int | None
) -> Server:
    """Returns what is known of an endpoint.

    Args:
        model: What it calls the model.
        host: Of its address.
        options: The template's.
        vllm: Whether it seems to take the options of vLLM's server.
        longest: As `Server`.
    """
    likely: Dialect = "vllm" if vllm else "openai"
    dialect = likely if options.server == "auto" else options.server
    hosted = host == "api.openai.com" or host.endswith(".openai.azure.com")
    name = options.max_tokens_field or ("max_completion_tokens" if hosted else "max_tokens")
    return Server(model, dialect, name, longest, options.extra_body)


def body_of(request: EngineRequest, server: Server) -> Body:
    """Returns what is sent for a request.

    Raises:
        ValueError: If the row, or one of its options, cannot be put into a request.
    """
    if request.adapter is not None:
        raise ValueError(f"an endpoint takes no adapters: {request.adapter!r}")
    if request.pooling is not None:
        fields = _embedding(request, request.pooling, server)
        return Body("embeddings", {"model": server.model, **fields, **server.extra})
    block = request.sampling or Inference()
    refuse_extensions(block, server)
    row = request.row
    fields = {"model": server.model, **_sampling(request, block, server)}
    if row.verbatim and isinstance(row.prompt, str):
        if block.logprobs is not None:
            fields["logprobs"] = block.logprobs
        return Body("completions", {**fields, "prompt": row.prompt, **server.extra})
    if block.logprobs is not None:
        fields |= {"logprobs": True, "top_logprobs": block.logprobs}
    fields |= _tools(block)
    fields["messages"] = messages_of(row, block, server, _pictures(request))
    return Body("chat", {**fields, **server.extra})


def messages_of(
    row: InputRow, block: Inference, server: Server | None, pictures: Iterator[str]
) -> list[dict[str, Any]]:
    """Returns a row as chat messages; a plain text is what one user says.

    Args:
        row: The row.
        block: Says what stands before it.
        server: Who reads it; None leaves out what only some read.
        pictures: Its images as addresses, in order.
    """
    given = [Message("user", row.prompt)] if isinstance(row.prompt, str) else row.prompt
    messages = [_message(each, server, pictures) for each in given]
    system = block.system_prompt
    if system is not None and not any(each.role == "system" for each in given):
        messages.insert(0, {"role": "system", "content": system})
    return messages


def extensions(block: RowBlock) -> dict[str, Any]:
    """Returns the options that are set and that OpenAI's API has no word for, as vLLM has them."""
    if isinstance(block, Pooling):
        return {"truncate": -1} if block.truncate else {}
    if not isinstance(block, Inference):
        return {}
    form = block.structured_outputs
    own_form = {} if form is None or _response_format(form) else {"structured_outputs": _form(form)}
    found: dict[str, Any] = {
        "top_k": None if block.top_k in (0, -1) else block.top_k,
        "min_p": block.min_p or None,
        "min_tokens": block.min_tokens or None,
        "stop_token_ids": list(block.stop_token_ids) or None,
        "ignore_eos": block.ignore_eos or None,
        "repetition_penalty": None if block.repetition_penalty == 1 else block.repetition_penalty,
        "skip_special_tokens": None if block.skip_special_tokens else False,
        "chat_template_kwargs": dict(block.chat_template_kwargs) or None,
    }
    return {name: value for name, value in found.items() if value is not None} | own_form


def refuse_extensions(block: RowBlock, server: Server) -> None:
    """Refuses options that the endpoint would ignore, or does not know.

    Raises:
        InputError: If one is set.
        ValueError: The same error; as a row's own it is that row's.
    """
    if isinstance(block, Pooling) and block.pooling_type is not None:
        raise UnknownToEndpointError(
            "an endpoint decides by itself how it makes vectors: leave pooling_type out"
        )
    found = sorted(extensions(block)) if server.dialect == "openai" else []
    if found:
        raise UnknownToEndpointError(
            f"OpenAI's API has no {', '.join(found)}: leave it out, or, if the endpoint is a vLLM "
            "server, write model.openai.server: vllm"
        )


class UnknownToEndpointError(InputError, ValueError):
    """A template asks for what its endpoint cannot follow."""


def _sampling(request: EngineRequest, block: Inference, server: Server) -> dict[str, Any]:
    most = block.max_tokens if server.longest is None else min(block.max_tokens, server.longest)
    fields: dict[str, Any] = {
        "temperature": 0.0 if block.greedy else block.temperature,
        server.max_tokens_field: most,
        "n": block.draws,
    }
    changed = {
        "top_p": (block.top_p, 1.0),
        "presence_penalty": (block.presence_penalty, 0.0),
        "frequency_penalty": (block.frequency_penalty, 0.0),
    }
    fields |= {name: value for name, (value, usual) in changed.items() if value != usual}
    if block.stop:
        fields["stop"] = list(block.stop)
    # Some hosted APIs refuse a seed, and vLLM's server on a CPU may break at one: it is sent where
    # it is wanted.
    if not block.greedy and block.seed is not None:
        fields["seed"] = request.seed % 2**63
    if block.structured_outputs is not None:
        form = _response_format(block.structured_outputs)
        fields |= {} if form is None else {"response_format": form}
    if server.dialect == "vllm":
        # A server may have other defaults, of the model's generation_config.json.
        fields |= {"top_p": block.top_p, "top_k": max(0, block.top_k), "min_p": block.min_p}
        fields["repetition_penalty"] = block.repetition_penalty
        fields |= extensions(block)
    return fields


def _response_format(form: StructuredOutputs) -> dict[str, Any] | None:
    if form.json_object:
        return {"type": "json_object"}
    if form.json_schema is None:
        return None
    schema = {"name": "answer", "schema": dict(form.json_schema), "strict": True}
    return {"type": "json_schema", "json_schema": schema}


def _form(form: StructuredOutputs) -> dict[str, Any]:
    return form.model_dump(mode="json", by_alias=True, exclude_none=True)


def _tools(block: Inference) -> dict[str, Any]:
    if not block.calls_tools:
        return {}
    choice = block.tool_choice
    fields: dict[str, Any] = {
        "tools": tool_definitions(block),
        "tool_choice": choice if isinstance(choice, str) else choice.model_dump(mode="json"),
    }
    return fields if block.parallel_tool_calls else {**fields, "parallel_tool_calls": False}


def _message(message: Message, server: Server | None, pictures: Iterator[str]) -> dict[str, Any]:
    content: Any = message.content
    if isinstance(content, list):
        content = [
            _picture(part, next(pictures)) if part.get("type") in _IMAGE_PARTS else part
            for part in content
        ]
    found: dict[str, Any] = {"role": message.role, "content": content}
    if message.name is not None:
        found["name"] = message.name
    if message.tool_calls:
        found["content"] = content or None
        found["tool_calls"] = [
            {
                "id": each.id,
                "type": each.type,
                "function": {"name": each.function.name, "arguments": each.function.arguments},
            }
            for each in message.tool_calls
        ]
    if message.tool_call_id is not None:
        found["tool_call_id"] = message.tool_call_id
    if message.reasoning is not None and server is not None and server.dialect == "vllm":
        found["reasoning"] = message.reasoning
    return found


def _picture(part: Mapping[str, Any], address: str) -> dict[str, Any]:
    given = part.get("image_url")
    more = {"detail": given["detail"]} if isinstance(given, dict) and "detail" in given else {}
    return {"type": "image_url", "image_url": {"url": address, **more}}


def _pictures(request: EngineRequest) -> Iterator[str]:
    """Yields a row's images as `data:` addresses: what was loaded here is what the model sees."""
    for picture in request.rendered.images:
        buffer = BytesIO()
        picture.save(buffer, "PNG")
        yield f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def embedded_text(row: InputRow, block: Pooling) -> str:
    """Returns the text whose vector is wanted.

    Raises:
        ValueError: If the row holds more than text.
    """
    return f"{instruction_of(block) or ''}{plain_text(row.prompt)}"


def _embedding(request: EngineRequest, block: Pooling, server: Server) -> dict[str, Any]:
    refuse_extensions(block, server)
    fields: dict[str, Any] = {
        "input": embedded_text(request.row, block),
        "encoding_format": "float",
    }
    if block.dimensions is not None:
        fields["dimensions"] = block.dimensions
    return {**fields, "truncate_prompt_tokens": -1} if block.truncate else fields
