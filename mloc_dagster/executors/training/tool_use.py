"""Tools that the model calls while it is trained and measured: opened once for each process.

TRL's trainer calls them in its rollouts. Here is what it needs for that, what rewards hear of the
calls, and how a model with tools is measured.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from mloc_dagster.errors import TerminalError
from mloc_dagster.executors.retrieval.named_search import search_passages
from mloc_dagster.executors.training.metrics import answer_room, greedy_tokens
from mloc_dagster.executors.training.sequences import Speech, messages, prompt_ids
from mloc_dagster.schema import TrainingSpec, number_of
from mloc_dagster.tools import FailedCall, tool_functions

ToolFunction = Callable[..., str]

CALLS_COLUMN = "tool_calls"
"""Where reward functions find the calls of each answer, beside the rows' own columns."""

MOST_TURNS = 20
"""Turns with calls of an answer that is measured, where the template does not say."""

_FAILED = ("Error: ", "{'error': ")
"""How results of failed calls begin: of tools, and of calls that TRL finds no tool for."""


@contextmanager
def opened_tools(
    spec: TrainingSpec, log: Callable[[str], None]
) -> Generator[tuple[ToolFunction, ...]]:
    """Opens the tools of a training, if it has any, for as long as the block runs.

    Args:
        spec: The task's spec.
        log: Hears what they say.

    Raises:
        MlocError: If a tool cannot be had here.
    """
    if not (spec.method.calls_tools and spec.training.tools):
        yield ()
        return
    with tool_functions(spec.training.tools, log=log, passages=search_passages) as functions:
        log(f"tools: {', '.join(each.__name__ for each in functions)}")
        yield tuple(functions)


def let_it_call(tokenizer: Any, spec: TrainingSpec, log: Callable[[str], None]) -> None:
    """Gives a tokenizer the response template that calls are read by.

    Args:
        tokenizer: The model's.
        spec: The task's spec.
        log: Hears which one it is.

    Raises:
        TerminalError: If the chat template has no place for calls, or nothing tells how the model
            writes them.
    """
    from trl.chat_template_utils import supports_tool_calling

    from mloc_dagster.executors.engines.transformers.responses import (
        CALLS,
        choose_template,
        known_template,
        shipped_template,
    )

    if not supports_tool_calling(tokenizer):
        raise TerminalError(
            "training.tools: the model's chat template has no place for calls of tools and their "
            "results: take a model that was made to call tools"
        )
    named = spec.model.transformers.response_template
    choice = choose_template(named, tokenizer, shipped_template, known_template)
    if choice.template is None or CALLS not in choice.fields:
        raise TerminalError(
            "training.tools: nothing tells how the model writes calls: name one of TRL's response "
            "templates in model.transformers.response_template, such as qwen3 or llama3, or write "
            "one there"
        )
    log(choice.note)
    tokenizer.response_template = dict(choice.template)


class FailureCount:
    """Counts failed calls in TRL's own figure of them, `tools/failure_frequency`.

    TRL counts what is raised. Our tools raise nothing: what failed is told in the result, as an
    agent sees it.
    """

    def __init__(self) -> None:
        self._failed = 0

    def watched(self, tools: Sequence[ToolFunction]) -> list[ToolFunction]:
        """Returns tools whose failures are counted."""
        return [self._watched(each) for each in tools]

    def told_by(self, trainer: Any) -> None:
        """Lets a trainer tell of these failures as well."""
        loop = trainer._tool_call_loop  # noqa: SLF001  there is no other place

        def counting(*arguments: Any, **options: Any) -> Any:
            self._failed = 0
            *before, raised, images = loop(*arguments, **options)
            return *before, raised + self._failed, images

        trainer._tool_call_loop = counting  # noqa: SLF001

    def _watched(self, tool: ToolFunction) -> ToolFunction:
        @functools.wraps(tool)
        def call(*values: Any, **options: Any) -> str:
            result = tool(*values, **options)
            self._failed += isinstance(result, FailedCall)
            return result

        return call


def calls_of(completion: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Returns the calls of an answer, in order.

    Args:
        completion: Its messages.

    Returns:
        `name`, `arguments`, `result` and `failed` of each. The result is None where a limit was
        reached: the call was not made any more, or what it gave did not fit.
    """
    found: list[dict[str, Any]] = []
    asked = 0
    for message in completion:
        if message["role"] == "tool":
            result = str(message["content"])
            found[asked] |= {"result": result, "failed": result.startswith(_FAILED)}
            asked += 1
            continue
        asked = len(found)
        for call in message.get("tool_calls") or ():
            function = call.get("function", call)
            found.append(
                {
                    "name": function.get("name", ""),
                    "arguments": function.get("arguments"),
                    "result": None,
                    "failed": False,
                }
            )
    return found


def answer_of(completion: Sequence[Mapping[str, Any]]) -> str:
    """Returns what the assistant says in the end; empty if it ended with a call's result."""
    last = completion[-1] if completion else {}
    content = last.get("content")
    return content if last.get("role") == "assistant" and isinstance(content, str) else ""


def greedy_tool_answers(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Speech],
    max_new_tokens: int,
    tools: Sequence[ToolFunction],
    most_turns: int = MOST_TURNS,
) -> list[str]:
    """Returns what a model with tools says in the end to each prompt, of the likeliest tokens.

    Args:
        model: A causal language model.
        tokenizer: Its tokenizer, from `let_it_call`.
        prompts: Texts or messages.
        max_new_tokens: Tokens of a turn at most.
        tools: What it may call.
        most_turns: Turns with calls at most.

    Raises:
        DataError: If the chat template refuses a prompt.
    """
    from transformers.utils.chat_template_utils import get_json_schema
    from trl.chat_template_utils import parse_response

    shown = [get_json_schema(each) for each in tools]
    by_name = {each.__name__: each for each in tools}
    new, room = answer_room(model, tokenizer, max_new_tokens)
    chats = [[dict(each) for each in messages(prompt, "user")] for prompt in prompts]
    begun = [len(each) for each in chats]
    open_chats = list(range(len(chats)))
    for turn in range(most_turns + 1):
        ids = [prompt_ids(tokenizer, chats[place], room, shown) for place in open_chats]
        written = greedy_tokens(model, tokenizer, ids, new)
        going_on: list[int] = []
        for place, prompt, tokens in zip(open_chats, ids, written, strict=True):
            said = parse_response(tokenizer, tokens, prefix=prompt, tools=list(tools))
            chats[place].append(said)
            calls = said.get("tool_calls") or []
            if not calls or turn == most_turns:
                continue
            chats[place] += [_result(by_name, each.get("function", each)) for each in calls]
            going_on.append(place)
        open_chats = going_on
        if not open_chats:
            break
    return [answer_of(chat[start:]) for chat, start in zip(chats, begun, strict=True)]


def most_turns_of(spec: TrainingSpec) -> int:
    """Returns how many turns with calls an answer may have that is measured."""
    return number_of(spec, "max_tool_calling_iterations", MOST_TURNS)


def _result(tools: Mapping[str, ToolFunction], call: Mapping[str, Any]) -> dict[str, str]:
    name, arguments = str(call.get("name", "")), call.get("arguments")
    function = tools.get(name)
    if function is None:
        result = f"Error: there is no tool {name!r}"
    elif not isinstance(arguments, Mapping):
        result = f"Error: {name} takes named arguments"
    else:
        result = function(**arguments)
    return {"role": "tool", "name": name, "content": str(result)}
