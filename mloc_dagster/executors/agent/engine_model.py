"""pydantic-ai's view of an engine: messages in, a response out, with a turn of the engine between.

pydantic-ai carries on the conversation: it keeps the messages, checks calls against the tools'
schemas, runs the tools, and tells the model of what was wrong.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from pydantic_ai.messages import (
    FinishReason,
    ImageUrl,
    ModelMessage,
    ModelRequest,
    ModelResponse,
    SystemPromptPart,
    TextPart,
    ThinkingPart,
    ToolCallPart,
    ToolReturnPart,
    UserContent,
    UserPromptPart,
)
from pydantic_ai.models import Model, ModelRequestParameters
from pydantic_ai.settings import ModelSettings
from pydantic_ai.tools import ToolDefinition
from pydantic_ai.usage import RequestUsage

from mloc_dagster.results import FunctionCall, Message, ModelTurn, ToolCall
from mloc_dagster.schema import FunctionTool, canonical_json

Ask = Callable[[list[Message], Sequence[FunctionTool]], Awaitable[ModelTurn]]
"""Asks the engine for the next turn of a chat, with these tools."""


class EngineModel(Model):
    """A model of pydantic-ai whose answers come from `ask`.

    Args:
        ask: Asks the engine.
        name: What the engine calls its model.
        system: The engine.
    """

    # A tag and a sentence about it would be one more thing for small models to stumble over.
    _announces_lookalike_notes = False

    def __init__(self, ask: Ask, name: str, system: str) -> None:
        super().__init__()
        self._ask = ask
        self._model_name = name
        self._system = system

    @property
    def model_name(self) -> str:
        """The model."""
        return self._model_name

    @property
    def system(self) -> str:
        """What runs it."""
        return self._system

    async def request(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
    ) -> ModelResponse:
        """Asks for the next turn."""
        _, known = self.prepare_request(model_settings, model_request_parameters)
        tools = [*known.declared_function_tools, *known.output_tools]
        turn = await self._ask(chat_of(messages), offered(tools))
        return response_of(turn, self._model_name)


def chat_of(messages: Sequence[ModelMessage]) -> list[Message]:
    """Returns pydantic-ai's messages as a chat."""
    chat: list[Message] = []
    for message in messages:
        if isinstance(message, ModelRequest):
            if message.instructions and not chat:
                chat.append(Message("system", message.instructions))
            chat += [_request_message(part) for part in message.parts]
        else:
            chat.append(_response_message(message))
    return chat


def _request_message(part: object) -> Message:
    match part:
        case SystemPromptPart():
            return Message("system", part.content)
        case UserPromptPart():
            return Message("user", _user_content(part.content))
        case ToolReturnPart():
            return Message("tool", part.model_response_str(), tool_call_id=part.tool_call_id)
        case _:
            # What was wrong with an answer; its text is made for the model.
            return Message("user", part.model_response())  # pyright: ignore[reportAttributeAccessIssue]


def _user_content(content: str | Sequence[UserContent]) -> str | list[dict[str, object]]:
    if isinstance(content, str):
        return content
    return [_part(each) for each in content]


def _part(content: UserContent) -> dict[str, object]:
    if isinstance(content, ImageUrl):
        return {"type": "image_url", "image_url": {"url": content.url}}
    return {"type": "text", "text": content if isinstance(content, str) else str(content)}


def _response_message(message: ModelResponse) -> Message:
    parts = message.parts
    calls = [
        ToolCall(part.tool_call_id, FunctionCall(part.tool_name, part.args_as_json_str()))
        for part in parts
        if isinstance(part, ToolCallPart)
    ]
    thoughts = [part.content for part in parts if isinstance(part, ThinkingPart)]
    return Message(
        "assistant",
        "".join(part.content for part in parts if isinstance(part, TextPart)),
        tool_calls=calls or None,
        reasoning="\n".join(thoughts) or None,
    )


def history_of(chat: Sequence[Message], instructions: str | None) -> list[ModelMessage]:
    """Returns a chat as pydantic-ai's messages, for a trajectory that goes on from there."""
    found: list[ModelMessage] = []
    names: dict[str, str] = {}
    for message in chat:
        if message.role != "assistant":
            found.append(ModelRequest([_part_of(message, names)], instructions=instructions))
            continue
        turn = ModelTurn(0, 0, _text(message), message.reasoning, message.tool_calls or [])
        names.update((call.id, call.function.name) for call in turn.tool_calls)
        found.append(response_of(turn, ""))
    return found


def _part_of(
    message: Message, names: dict[str, str]
) -> SystemPromptPart | ToolReturnPart | UserPromptPart:
    if message.role == "system":
        return SystemPromptPart(_text(message))
    if message.role == "tool":
        call = message.tool_call_id or ""
        return ToolReturnPart(names.get(call, message.name or "tool"), _text(message), call)
    return UserPromptPart(user_content(message))


def user_content(message: Message) -> str | list[UserContent]:
    """Returns what a message of the user says, as pydantic-ai has it."""
    if isinstance(message.content, str):
        return message.content
    return [
        ImageUrl(part["image_url"]["url"]) if part.get("type") == "image_url" else part["text"]
        for part in message.content
    ]


def _text(message: Message) -> str:
    if isinstance(message.content, str):
        return message.content
    return "\n".join(part["text"] for part in message.content if part.get("type") == "text")


def response_of(turn: ModelTurn, model: str) -> ModelResponse:
    """Returns a turn as pydantic-ai's response."""
    parts: list[ThinkingPart | TextPart | ToolCallPart] = []
    if turn.reasoning:
        parts.append(ThinkingPart(turn.reasoning))
    if turn.text or not turn.tool_calls:
        parts.append(TextPart(turn.text))
    parts += [
        ToolCallPart(call.function.name, call.function.arguments, call.id)
        for call in turn.tool_calls
    ]
    return ModelResponse(
        parts,
        usage=RequestUsage(
            input_tokens=turn.prompt_tokens,
            cache_read_tokens=turn.cached_tokens,
            output_tokens=turn.completion_tokens,
        ),
        model_name=model,
        finish_reason=_REASONS.get(turn.finish_reason, "stop"),
    )


_REASONS: dict[str, FinishReason] = {"tool_calls": "tool_call", "length": "length"}


_MOST_OFFERS = 1024
_offers: dict[tuple[object, ...], tuple[Sequence[ToolDefinition], tuple[FunctionTool, ...]]] = {}
_equal_offers: dict[str, tuple[FunctionTool, ...]] = {}


def offered(tools: Sequence[ToolDefinition]) -> tuple[FunctionTool, ...]:
    """Returns tools as an `inference` block has them; the same object for equal ones.

    Toolsets give the same schemas turn after turn, so these are read only when they are new.
    """
    key = tuple(
        part
        for each in tools
        for part in (each.name, each.description, id(each.parameters_json_schema))
    )
    known = _offers.get(key)
    if known is None:
        if len(_offers) >= _MOST_OFFERS:
            _offers.clear()
            _equal_offers.clear()
        # The definitions are kept, so that the ids of their schemas stay theirs.
        known = _offers[key] = list(tools), _as_functions(tools)
    return known[1]


def _as_functions(tools: Sequence[ToolDefinition]) -> tuple[FunctionTool, ...]:
    fields: list[Any] = [
        {
            "name": each.name,
            "description": each.description,
            "parameters": each.parameters_json_schema,
        }
        for each in tools
    ]
    made = tuple(FunctionTool.model_validate({"function": each}) for each in fields)
    return _equal_offers.setdefault(canonical_json(fields), made)
