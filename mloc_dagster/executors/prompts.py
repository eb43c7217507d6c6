"""Prompts as text or chat messages, and a row's own options over those of its task."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from typing import Any, cast, get_origin

from pydantic import TypeAdapter, ValidationError

from mloc_dagster.results import InputRow, Message, Prompt, SourceRow, ToolCall
from mloc_dagster.schema import (
    EngineType,
    Inference,
    Pooling,
    Reranking,
    canonical_json,
    refused_in_inference,
)

RowBlock = Inference | Pooling | Reranking
"""How a row is answered, or embedded, or its texts are put in order."""

_MOST_KEPT = 1024
_TEMPLATE_VALUES = "chat_template_kwargs"


def instruction_of(block: RowBlock) -> str | None:
    """Returns what is put before each row."""
    match block:
        case Inference():
            return block.system_prompt
        case Pooling():
            return block.instruction
        case Reranking():
            return None


class RowOptions:
    """Lays rows' options over the task's block; rows with equal options share one block.

    Args:
        block: The task's.
        engine: What answers, where that is certain: options that it cannot follow are refused.
    """

    def __init__(self, block: RowBlock, engine: EngineType | None = None) -> None:
        self._block = block
        self._engine = engine
        self._given = block.model_dump(mode="json", by_alias=True, exclude_unset=True)
        self._kept: dict[str, RowBlock] = {}

    def of(self, row: InputRow | SourceRow) -> RowBlock:
        """Returns the block that holds for a row.

        Raises:
            ValueError: If an option does not exist, has a value that it cannot have, or
                contradicts another one.
        """
        if not row.options:
            return self._block
        known = canonical_json(dict(sorted(row.options.items())))
        block = self._kept.get(known)
        if block is None:
            try:
                _refuse_other_types(type(self._block), row.options)
                block = type(self._block).model_validate(self._laid_over(row.options))
            except ValidationError as error:
                raise ValueError(_in_words(error)) from None
            _refuse_contradictions(block, self._engine)
            if len(self._kept) >= _MOST_KEPT:
                self._kept.clear()
            self._kept[known] = block
        return block

    def _laid_over(self, options: Mapping[str, Any]) -> dict[str, Any]:
        given = {**self._given, **options}
        values = options.get(_TEMPLATE_VALUES)
        if isinstance(values, dict):  # of these a row sets some, and the task's others hold
            given[_TEMPLATE_VALUES] = {**self._given.get(_TEMPLATE_VALUES, {}), **values}
        return given


def _refuse_other_types(block: type[RowBlock], options: Mapping[str, Any]) -> None:
    """Refuses what YAML may be lax about and the API is not: text where a number is wanted."""
    for name, value in options.items():
        field = block.model_fields.get(name)
        if field is None or value is None or isinstance(value, dict):
            continue  # the block says what is wrong with these
        kind = _strict_type(block, name)
        whole = int(value) if isinstance(value, float) and value.is_integer() else value
        several = isinstance(value, str) and get_origin(field.annotation) is tuple
        try:
            kind.validate_json(canonical_json([value] if several else whole), strict=True)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            raise ValueError(f"the row's option {name!r}: {first['msg']}, not {value!r}") from None


@cache
def _strict_type(block: type[RowBlock], name: str) -> TypeAdapter[Any]:
    return TypeAdapter(cast("Any", block.model_fields[name].annotation))


def _refuse_contradictions(block: RowBlock, engine: EngineType | None) -> None:
    # The compiler sees the task's own block only.
    for each in refused_in_inference(block, None) if isinstance(block, Inference) else ():
        raise ValueError(f"the row's option {'.'.join(map(str, each.path))!r}: {each.reason}")
    calls_tools = isinstance(block, Inference) and block.calls_tools
    if calls_tools and engine is not None and "tools" not in engine.abilities:
        raise ValueError(f"the row's option 'tools': {engine.label} calls no tools")


def _in_words(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    where = ".".join(str(step) for step in first["loc"])
    value = "" if first["type"] == "extra_forbidden" else f", not {first.get('input')!r}"
    return f"the row's option {where!r}: {first['msg']}{value}"


TEXT_ONLY = "this model reads text only"
NO_TEMPLATE = "this model has no chat template, which would say where images belong: it takes text"


def message_text(message: Message) -> str:
    """Returns the text of a message; parts that are not text are left out."""
    if isinstance(message.content, str):
        return message.content
    texts = (part.get("text") for part in message.content if part.get("type") == "text")
    return "\n".join(text for text in texts if isinstance(text, str))


def is_blank(prompt: Prompt) -> bool:
    """Tells whether a prompt holds nothing but white space, and no part that is not text."""
    if isinstance(prompt, str):
        return not prompt.strip()
    return all(
        _holds_text_only(turn) and not turn.tool_calls and not message_text(turn).strip()
        for turn in prompt
    )


def last_user_text(prompt: Prompt) -> str:
    """Returns a plain prompt itself, or the last thing the user said in a chat."""
    if isinstance(prompt, str):
        return prompt
    said = [message for message in prompt if message.role == "user"] or prompt
    return message_text(said[-1]) if said else ""


def render_chat(
    tokenizer: Any,
    prompt: Prompt,
    block: RowBlock,
    *,
    sees: bool = False,
    template: str | None = None,
) -> str:
    """Renders a prompt through the tokenizer's chat template, up to where the answer begins.

    A plain prompt is one user message. The system prompt stands first; a chat that brings a
    system message of its own keeps that one. A `template` stands in for the tokenizer's.

    Raises:
        ValueError: If a message holds something other than text (or images, where the model
            `sees`), the template refuses it, or it has no place for the tools of `block`.
    """
    chat = chat_turns(prompt, instruction_of(block), sees=sees)
    options: dict[str, Any] = {}
    if isinstance(block, Inference):
        options |= block.chat_template_kwargs
        if block.calls_tools:
            options["tools"] = tool_definitions(block)
    try:
        text = tokenizer.apply_chat_template(
            chat, chat_template=template, tokenize=False, add_generation_prompt=True, **options
        )
    except Exception as error:
        raise ValueError(f"the model's chat template refuses this prompt: {error}") from error
    if "tools" in options and not _shows_tools(tokenizer, template):
        raise ValueError("the model's chat template has no place for tools")
    return text


def chat_turns(
    prompt: Prompt, system_prompt: str | None, *, sees: bool = False
) -> list[dict[str, Any]]:
    """Returns a prompt as the messages that a chat template reads.

    Raises:
        ValueError: As `render_chat`.
    """
    messages = [Message("user", prompt)] if isinstance(prompt, str) else prompt
    chat = [_turn(message, sees) for message in messages]
    if system_prompt is not None and not any(turn["role"] == "system" for turn in chat):
        chat.insert(0, {"role": "system", "content": system_prompt})
    return chat


def tool_definitions(block: Inference) -> list[dict[str, Any]]:
    """Returns the tools of a block as OpenAI's API has them."""
    return [each.model_dump(mode="json", exclude_none=True) for each in block.tools]


def _shows_tools(tokenizer: Any, template: str | None) -> bool:
    """Tells whether a template can show tools: some take them without a word and leave them out."""
    texts = tokenizer.chat_template if template is None else template
    return "tools" in (texts if isinstance(texts, str) else " ".join(texts or ()))


def render_plain(prompt: Prompt, block: RowBlock, *, sees: bool = False) -> str:
    """Renders a prompt for a model without a chat template: paragraphs, system prompt first.

    Raises:
        ValueError: If a message holds something other than text, or there are tools. Even a model
            that `sees` has nothing then that says where images belong.
    """
    if isinstance(block, Inference) and block.calls_tools:
        raise ValueError("this model has no chat template, which would show it the tools")
    text = plain_text(prompt, NO_TEMPLATE if sees else TEXT_ONLY)
    instruction = instruction_of(block)
    own_system = not isinstance(prompt, str) and any(turn.role == "system" for turn in prompt)
    return text if instruction is None or own_system else f"{instruction}\n\n{text}"


def plain_text(prompt: Prompt, why: str = TEXT_ONLY) -> str:
    """Returns the texts of a prompt as paragraphs.

    Args:
        prompt: The prompt.
        why: Why a message may hold nothing else.

    Raises:
        ValueError: If one does.
    """
    if isinstance(prompt, str):
        return prompt
    return "\n\n".join(_only_text(turn, why) for turn in prompt)


def _turn(message: Message, sees: bool) -> dict[str, Any]:
    turn: dict[str, Any] = {"role": message.role, "content": _content(message, sees)}
    if message.name is not None:
        turn["name"] = message.name
    if message.tool_calls:
        turn["tool_calls"] = [_call(each) for each in message.tool_calls]
    if message.tool_call_id is not None:
        turn["tool_call_id"] = message.tool_call_id
    if message.reasoning is not None:
        # Both names are in use among the templates of models that think.
        turn["reasoning"] = turn["reasoning_content"] = message.reasoning
    return turn


def _call(call: ToolCall) -> dict[str, Any]:
    """Returns a call as chat templates read it: with its arguments as an object, not as text."""
    try:
        arguments = json.loads(call.function.arguments or "{}")
    except ValueError:
        arguments = None
    if not isinstance(arguments, dict):
        raise ValueError(  # noqa: TRY004
            f"the arguments of the call {call.id!r} are no JSON object: {call.function.arguments!r}"
        )
    function = {"name": call.function.name, "arguments": arguments}
    return {"id": call.id, "type": "function", "function": function}


def _content(message: Message, sees: bool) -> str | list[dict[str, str]]:
    """Returns what a chat template reads: text, or for a model that sees, parts of a message."""
    if not sees or isinstance(message.content, str):
        return _only_text(message, TEXT_ONLY)
    image = {"type": "image"}  # a place; the picture itself is loaded beside the engine
    return [
        image if part.get("type") in ("image_url", "image") else part for part in message.content
    ]


def _holds_text_only(message: Message) -> bool:
    content = message.content
    return isinstance(content, str) or all(part.get("type") == "text" for part in content)


def _only_text(message: Message, why: str) -> str:
    if not isinstance(message.content, str):
        others = {str(part.get("type")) for part in message.content} - {"text"}
        if others:
            raise ValueError(f"{why}, not {', '.join(sorted(others))} parts")
    return message_text(message)
