"""Plays given turns: the fake model that agents are tried and tested with."""

from __future__ import annotations

import heapq
import time
from collections.abc import Iterator, Mapping
from itertools import count

from pydantic import JsonValue

from mloc_dagster.errors import TaskCancelled
from mloc_dagster.executors.engines.protocol import (
    Answer,
    Completion,
    Engine,
    EngineLoader,
    EngineRequest,
    Rendered,
    Replies,
)
from mloc_dagster.executors.engines.scripted.engine_type import (
    SCRIPTED,
    ScriptedOptions,
    ScriptedTurn,
)
from mloc_dagster.executors.engines.turn import LOOK_EVERY_S
from mloc_dagster.executors.prompts import RowBlock, last_user_text, plain_text
from mloc_dagster.results import FunctionCall, InputRow, Message, Prompt, ToolCall
from mloc_dagster.schema import ModelSpec, canonical_json, digest_of


class ScriptedLoader(EngineLoader):
    """Loads nothing."""

    def load(self, spec: ModelSpec) -> Engine:
        """Returns the engine."""
        return ScriptedEngine(spec.model.options(SCRIPTED.name, ScriptedOptions))


class ScriptedEngine:
    """Answers the n-th turn of a chat with the n-th turn of a script.

    Args:
        options: The script.
    """

    label = "scripted"
    name = "scripted"
    device = "cpu"
    size_bytes = 0

    def __init__(self, options: ScriptedOptions) -> None:
        self._turns = options.turns or (ScriptedTurn(),)
        self._agents = options.agents
        self._most = options.max_concurrency
        self.revision = f"sha256:{digest_of(options.model_dump_json()).hex()}"

    def render(self, row: InputRow, block: RowBlock) -> Rendered:
        """Returns the texts of a row."""
        return Rendered(plain_text(row.prompt))

    def tokenize(self, texts: list[str], *, special: bool = True) -> list[list[int]]:
        """Counts a word as a token."""
        return [list(range(len(text.split()) or 1)) for text in texts]

    def run(self, requests: Iterator[EngineRequest | None], replies: Replies) -> None:
        """Plays the turns; each lasts as long as the script says.

        Raises:
            TaskCancelled: If the task was asked to stop.
        """
        number = count()
        playing: list[tuple[float, int, EngineRequest, float]] = []
        looked, ended = 0.0, False
        while playing or not ended:
            now = time.monotonic()
            if now - looked > LOOK_EVERY_S:
                looked = now
                if replies.cancelled():
                    raise TaskCancelled("stopped between two turns")
            while playing and playing[0][0] <= time.monotonic():
                _, _, request, began = heapq.heappop(playing)
                replies.done(request, self._completion(request, time.monotonic() - began))
            drawn = False
            if not ended and len(playing) < self._most:
                try:
                    request = next(requests)
                except StopIteration:
                    ended = True
                else:
                    drawn = request is not None
                    if request is not None:
                        began = time.monotonic()
                        due = began + self._turn(request).delay_s
                        heapq.heappush(playing, (due, next(number), request, began))
            if playing and not drawn:
                time.sleep(min(max(playing[0][0] - time.monotonic(), 0.0), 0.005))

    def close(self) -> None:
        """Frees nothing."""

    def _turn(self, request: EngineRequest) -> ScriptedTurn:
        chat = request.row.prompt
        said = 0 if isinstance(chat, str) else sum(each.role == "assistant" for each in chat)
        turns = self._agents.get(_instructions(chat)) or self._turns
        return turns[min(said, len(turns) - 1)]

    def _completion(self, request: EngineRequest, latency_s: float) -> Completion:
        turn, block, row = self._turn(request), request.sampling, request.row
        values = {
            "index": str(row.index),
            "prompt": last_user_text(row.prompt),
            "result": _last_result(row.prompt if isinstance(row.prompt, list) else []),
        }
        calls: list[ToolCall] = []
        if block is not None and block.calls_tools:
            for place, each in enumerate(turn.tool_calls):
                arguments = canonical_json(_filled(each.arguments, values))
                call_id = f"call_{len(request.tokens)}_{place}"
                calls.append(ToolCall(call_id, FunctionCall(each.name, arguments)))
        text = str(_filled(turn.text, values))
        thought = None if turn.reasoning is None else str(_filled(turn.reasoning, values))
        thoughts = len((thought or "").split())
        answer = Answer(
            text,
            "tool_calls" if calls else "stop",
            len(text.split()) + thoughts + len(calls),
            tool_calls=tuple(calls),
            reasoning=thought,
            reasoning_tokens=thoughts,
        )
        wanted = 1 if block is None else block.n
        return Completion(
            (answer,) * wanted, prompt_tokens=len(request.tokens), latency_s=latency_s
        )


def _filled(value: JsonValue | Mapping[str, JsonValue], values: Mapping[str, str]) -> JsonValue:
    if isinstance(value, str):
        for name, text in values.items():
            value = value.replace(f"{{{name}}}", text)
        return value
    if isinstance(value, Mapping):
        return {name: _filled(each, values) for name, each in value.items()}
    if isinstance(value, list):
        return [_filled(each, values) for each in value]
    return value


def _instructions(chat: Prompt) -> str:
    first = chat[0] if isinstance(chat, list) and chat else None
    return plain_text([first]) if first is not None and first.role == "system" else ""


def _last_result(chat: list[Message]) -> str:
    said = [each for each in chat if each.role == "tool"]
    return plain_text(said[-1:]) if said else ""
