"""Formats of tool calls, and what every engine makes of the calls that a library has parsed.

Libraries parse and constrain; they name the same format each in its own way. The table here says
which names belong together, and how a chat template shows that its model writes a format.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

from mloc_dagster.executors.engines.protocol import EngineRequest
from mloc_dagster.executors.prompts import tool_definitions
from mloc_dagster.results import FunctionCall, ToolCall
from mloc_dagster.schema import Inference, digest_of


@dataclass(frozen=True, slots=True)
class CallFormat:
    """A way to write a call.

    Attributes:
        marks: Texts that stand in the chat template of models that write it, all of them.
        tool_parser: vLLM's name of its parser.
        response_template: TRL's name of its template for transformers' parser; None without one.
        structural_tag: xgrammar's name of the form, where it is the one that the template reads.
    """

    marks: tuple[str, ...]
    tool_parser: str
    response_template: str | None = None
    structural_tag: str | None = None


CALL_FORMATS: tuple[CallFormat, ...] = (
    CallFormat(("<tool_call>", "<function="), "qwen3_xml", "qwen3_5", "qwen_3_5"),
    CallFormat(("<tool_call>", "<arg_key>"), "glm45", "glm4moe"),
    CallFormat(("<｜DSML｜",), "deepseek_v32"),
    CallFormat(("<｜tool▁calls▁begin｜>", "```json"), "deepseek_v3"),
    CallFormat(("<｜tool▁calls▁begin｜>",), "deepseek_v31"),
    CallFormat(("<|tool_calls_section_begin|>",), "kimi_k2"),
    CallFormat(("<minimax:tool_call>",), "minimax_m2"),
    CallFormat(("<seed:tool_call>",), "seed_oss"),
    CallFormat(("<longcat_tool_call>",), "longcat"),
    CallFormat(("<|tool_call_start|>",), "lfm2", "lfm2_2_5"),
    CallFormat(("<start_function_call>",), "functiongemma"),
    CallFormat(("<|tool_call>call:",), "gemma4", "gemma4"),
    CallFormat(("<|action_start|>",), "internlm"),
    CallFormat(("[TOOL_CALLS]",), "mistral"),
    CallFormat(('"parameters": dictionary', "<|start_header_id|>"), "llama3_json", "llama3"),
    CallFormat(("<|channel|>",), "openai", "gptoss"),
    CallFormat(("<tool_call>",), "hermes", "qwen3", "qwen_3"),
)
"""In the order in which they are looked for: a format with more marks before one with fewer."""


def format_of(chat_template: str) -> CallFormat | None:
    """Returns the format that a chat template shows; None if it shows none that is known."""
    found = (each for each in CALL_FORMATS if all(mark in chat_template for mark in each.marks))
    return next(found, None)


def held_tools(block: Inference) -> list[dict[str, Any]]:
    """Returns the tools that answers are held to, as xgrammar and vLLM read them.

    Where an answer has to be a call, its arguments fit the function's schema, unless the template
    says `strict: false`.
    """
    tools = tool_definitions(block)
    for each in tools if block.forces_calls else ():
        each["function"].setdefault("strict", True)
    return tools


def finish_reason(block: Inference | None, reason: str, calls: Sequence[ToolCall]) -> str:
    """Returns what OpenAI's API says: `tool_calls` where the model chose to call, and was not cut.

    An answer that had to be a certain function's call ends with `stop` there.
    """
    chosen = block is not None and block.tool_choice in ("auto", "required")
    return "tool_calls" if calls and chosen and reason == "stop" else reason


_MISTRAL_ID = re.compile(r"[A-Za-z0-9]{9}")  # its chat templates refuse any other length
_PLACED_ID = re.compile(r"functions\..+:\d+")  # Kimi's, which its model has learned to count on
_LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"


class CallIds:
    """Ids of the calls of one answer: equal requests have equal ones, as they have equal answers.

    The chat so far is part of a request, so no two calls of a chat have the same id.

    Args:
        request: The request.
        answer: Which of its answers.
    """

    def __init__(self, request: EngineRequest, answer: int) -> None:
        block = request.sampling
        seed = None if block is None or block.greedy else request.seed
        images = list(request.rendered.image_ids)
        self._known = digest_of(str(request.tokens), images, request.adapter, seed, answer)

    def of(self, place: int, made: str | None = None) -> str:
        """Returns the id of a call.

        Args:
            place: Its place in the answer.
            made: What the library called it, whose form is kept where models rely on it.
        """
        if made is not None and _PLACED_ID.fullmatch(made):
            return made
        digest = blake2b(self._known + str(place).encode(), digest_size=12)
        if made is not None and _MISTRAL_ID.fullmatch(made):
            return "".join(_LETTERS[each % len(_LETTERS)] for each in digest.digest()[:9])
        return f"call_{digest.hexdigest()}"

    def call(self, place: int, name: str, arguments: str, made: str | None = None) -> ToolCall:
        """Returns a call with its id."""
        return ToolCall(self.of(place, made), FunctionCall(name, arguments))
