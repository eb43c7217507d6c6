"""Loads recorded answers, and gives them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from acme_mloc.recorded import RecordedOptions
from mloc_dagster.errors import TaskCancelled, TerminalError
from mloc_dagster.executors import (
    Answer,
    Completion,
    EngineLoader,
    EngineRequest,
    InputRow,
    Rendered,
    Replies,
    last_user_text,
)
from mloc_dagster.results import ToolCall
from mloc_dagster.schema import ModelSpec


class RecordedLoader(EngineLoader):
    """Reads the file once; every shard and task with the same options uses what was read."""

    def load(self, spec: ModelSpec) -> Recorded:
        """Returns the engine."""
        options = spec.model.options("recorded", RecordedOptions)
        try:
            data = Path(str(options.answers)).read_bytes()
            rows = [json.loads(line) for line in data.splitlines()]
            answers = {row["prompt"]: recorded_answer(row) for row in rows}
        except (OSError, ValueError, KeyError) as error:
            raise TerminalError(f"model.recorded.answers: {error!r}") from error
        return Recorded(spec.model.source.identifier, options, answers, data)


def recorded_answer(row: dict[str, Any]) -> Answer:
    """Returns what a line of the file says; it counts a byte as a token."""
    text, thought = row["output"], row.get("reasoning")
    calls = msgspec.convert(row.get("tool_calls", []), tuple[ToolCall, ...])
    return Answer(
        text,
        "tool_calls" if calls else "stop",
        len(f"{thought or ''}{text}".encode()),
        tool_calls=calls,
        reasoning=thought,
        reasoning_tokens=len((thought or "").encode()),
    )


class Recorded:
    """What was recorded."""

    label = "acme-recorded 1.0"
    device = "cpu"

    def __init__(
        self, name: str, options: RecordedOptions, answers: dict[str, Answer], data: bytes
    ) -> None:
        self.name = name
        self.revision = f"sha256:{hashlib.sha256(data).hexdigest()}"
        self.size_bytes = len(data)
        self._strict = options.strict
        self._answers = answers

    def render(self, row: InputRow, block: object) -> Rendered:
        """Returns what the answer is looked up by."""
        return Rendered(last_user_text(row.prompt))

    def tokenize(self, texts: list[str], *, special: bool = True) -> list[list[int]]:
        """Counts a byte as a token."""
        return [list(text.encode()) for text in texts]

    def run(self, requests: Iterator[EngineRequest], replies: Replies) -> None:
        """Answers each request."""
        for request in requests:
            if replies.cancelled():
                raise TaskCancelled
            answer = self._answers.get(request.rendered.text)
            if answer is None and self._strict:
                replies.failed(request, "no answer to this prompt was recorded")
                continue
            answer = answer or Answer("", "stop", 0)
            wanted = 1 if request.sampling is None else request.sampling.n
            answers = (answer,) * wanted
            replies.done(request, Completion(answers, prompt_tokens=len(request.tokens)))

    def close(self) -> None:
        """Forgets the answers."""
        self._answers = {}
