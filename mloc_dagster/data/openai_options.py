"""The body of an OpenAI API request in the words of a template: endpoint, prompts, options."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Set
from typing import Any, cast

from mloc_dagster.data.openai_messages import RequestError, chat_messages
from mloc_dagster.data.openai_tools import TOOL_FIELDS, tool_options
from mloc_dagster.errors import nearest_hint
from mloc_dagster.results import Message, Prompt

CHAT, COMPLETIONS, EMBEDDINGS = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
ENDPOINTS = (CHAT, COMPLETIONS, EMBEDDINGS)

Body = Mapping[str, Any]
"""What a request asks for, as it was read."""

MAX_INPUTS = 2048
"""Texts in one request, as the API has it."""


def prompts_of(url: str, body: Body) -> Iterator[Prompt]:
    """Yields what a body wants answered: one chat, or each of its texts.

    Raises:
        RequestError: If there is nothing, or something that no model here reads.
    """
    yield from _PROMPTS[url](body)


def _chat_prompts(body: Body) -> Iterator[list[Message]]:
    yield chat_messages(body.get("messages"))


def _texts(name: str) -> Callable[[Body], Iterator[str]]:
    """Returns a reader of a text or a list of texts; both completions and embeddings take them."""

    def read(body: Body) -> Iterator[str]:
        given = body.get(name)
        if isinstance(given, str):
            yield given
            return
        if not isinstance(given, list) or not given:
            raise RequestError(f"{name!r} must be text, or a list of texts")
        texts = cast("list[Any]", given)
        if all(isinstance(each, int | list) for each in texts):
            raise RequestError(f"{name!r} is token ids, which depend on the model: write text")
        if not all(isinstance(each, str) for each in texts):
            raise RequestError(f"{name!r} must be text, or a list of texts")
        if len(texts) > MAX_INPUTS:
            raise RequestError(f"{name!r} has {len(texts)} texts; at most {MAX_INPUTS} are allowed")
        yield from texts

    return read


_PROMPTS: Mapping[str, Callable[[Body], Iterator[Any]]] = {
    CHAT: _chat_prompts,
    COMPLETIONS: _texts("prompt"),
    EMBEDDINGS: _texts("input"),
}


TEMPERATURE = 1.0
"""What the API takes when neither the body nor the template says otherwise."""

MAX_TOKENS = {CHAT: 4096, COMPLETIONS: 16}
"""Likewise. The API lets a chat's answer grow to the end of the context; here that is bounded."""

_SAME = frozenset(
    {
        "temperature",
        "top_p",
        "top_k",
        "min_p",
        "max_tokens",
        "min_tokens",
        "stop",
        "stop_token_ids",
        "ignore_eos",
        "seed",
        "n",
        "repetition_penalty",
        "presence_penalty",
        "frequency_penalty",
        "skip_special_tokens",
        "structured_outputs",
    }
)
_SAME_IN_POOLING = frozenset({"dimensions", "normalize", "pooling_type"})
_FORMS = {
    "guided_json": "json",
    "guided_regex": "regex",
    "guided_choice": "choice",
    "guided_grammar": "grammar",
}

# They say who asks, or how the hosted service is to go about it: no answer depends on them.
_WITHOUT_EFFECT = frozenset(
    {
        "model",
        "user",
        "metadata",
        "store",
        "service_tier",
        "safety_identifier",
        "prompt_cache_key",
        "prompt_cache_retention",
        "stream_options",
    }
)

# Harmless with these values, which clients like to spell out; anything else is refused.
_ONLY: Mapping[str, tuple[object, ...]] = {
    "stream": (False,),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "logit_bias": ({},),
    "echo": (False,),
    "suffix": ("",),
    "best_of": (1,),
    "modalities": (["text"],),
    "encoding_format": ("float", "base64"),
    "include_stop_str_in_output": (False,),
    "include_reasoning": (True,),
}
_WHY: Mapping[str, str] = {
    "stream": "a batch's answers are never streamed",
    "functions": "it is deprecated; use tools",
    "function_call": "it is deprecated; use tool_choice",
    "encoding_format": "vectors are written as float or base64",
}
_KNOWN = {
    CHAT: _SAME
    | {"messages", "max_completion_tokens", "logprobs", "top_logprobs", "response_format"}
    | TOOL_FIELDS
    | _FORMS.keys(),
    COMPLETIONS: _SAME | {"prompt", "logprobs", "response_format"} | _FORMS.keys(),
    EMBEDDINGS: _SAME_IN_POOLING | {"input", "truncate_prompt_tokens"},
}


def options_of(url: str, body: Body, given_by_task: Set[str]) -> dict[str, Any]:
    """Returns the options that a body means.

    Args:
        url: The endpoint.
        body: What the request asks for.
        given_by_task: Fields that the task's block sets itself: these hold where a body is silent.

    Raises:
        RequestError: If something is asked for that is not supported.
    """
    given = {name: value for name, value in body.items() if value is not None}
    known = _KNOWN[url]
    options = _api_defaults(url, given_by_task)
    for name, value in given.items():
        if name in _ONLY:
            _check_harmless(name, value)
        elif name not in known and name not in _WITHOUT_EFFECT:
            raise RequestError(f"{name!r} is not supported{nearest_hint(name, known)}")
        elif name in _SAME or name in _SAME_IN_POOLING:
            options[name] = value
    if "max_completion_tokens" in given:
        options["max_tokens"] = given["max_completion_tokens"]
    if url == CHAT:
        options |= tool_options(given)
    if (logprobs := _logprobs(url, given)) is not None:
        options["logprobs"] = logprobs
    if (form := _form(given)) is not None:
        options["structured_outputs"] = form
    if "truncate_prompt_tokens" in given:
        options["truncate"] = _truncate(given["truncate_prompt_tokens"])
    return options


def _api_defaults(url: str, given_by_task: Set[str]) -> dict[str, Any]:
    if url == EMBEDDINGS:
        return {}
    defaults = {"temperature": TEMPERATURE, "max_tokens": MAX_TOKENS[url]}
    return {name: each for name, each in defaults.items() if name not in given_by_task}


def _check_harmless(name: str, value: object) -> None:
    if value not in _ONLY[name]:
        why = f": {_WHY[name]}" if name in _WHY else ""
        raise RequestError(f"{name!r} is not supported{why}")


def _logprobs(url: str, given: Body) -> int | None:
    asked = given.get("logprobs")
    if url != CHAT:
        return asked
    if asked is not None and not isinstance(asked, bool):
        raise RequestError(f"'logprobs' must be true or false, not {asked!r}")
    top = given.get("top_logprobs")
    if asked is True:
        return 0 if top is None else top
    if top:
        raise RequestError("'top_logprobs' needs logprobs: true")
    return None


def _form(given: Body) -> Any:
    """Returns the `structured_outputs` that a body means, in any of the ways to say it."""
    for old, name in _FORMS.items():
        if old in given:
            return {name: given[old]}
    asked = given.get("response_format")
    if asked is None:
        return None
    kind = asked.get("type") if isinstance(asked, dict) else asked
    match kind:
        case "text":
            return None
        case "json_object":
            return {"json_object": True}
        case "json_schema":
            described = asked.get("json_schema")
            schema = described.get("schema") if isinstance(described, dict) else None
            if not isinstance(schema, dict):
                raise RequestError("'response_format' has no json_schema.schema")
            return {"json": schema}
        case _:
            raise RequestError(
                f"'response_format' of type {kind!r} is not supported: text, json_object or "
                "json_schema"
            )


def _truncate(value: object) -> bool:
    if value != -1:
        raise RequestError(
            f"'truncate_prompt_tokens' is supported as -1 (the model's limit), not {value!r}"
        )
    return True
