"""`mloc chat`: talk to a model, or to what a task has trained."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from queue import SimpleQueue
from threading import Event, Thread
from typing import TYPE_CHECKING, Any

from pydantic import JsonValue

from mloc_dagster.cli.api_choice import answering_api
from mloc_dagster.cli.terminal import INTERRUPTED, OK, Terminal, debugging, quiet_terminal
from mloc_dagster.errors import InputError, MlocError, TransientError

if TYPE_CHECKING:
    from mloc_dagster.fleet import Piece

type Chat = list[dict[str, str]]
type Answer = Callable[[Chat], Iterator[str]]

_ENDPOINT = "/v1/chat/completions"
_HELP = "/clear forgets the chat, /exit or Ctrl-D ends it, Ctrl-C stops an answer"


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatOptions:
    """The command line of `mloc chat`; see its help."""

    model: str
    question: str | None = None
    system: str | None = None
    temperature: float | None = None
    max_tokens: int | None = None
    seed: int | None = None

    @property
    def fields(self) -> dict[str, JsonValue]:
        """What a request says beside the chat."""
        given = {
            "temperature": self.temperature,
            "max_tokens": self.max_tokens,
            "seed": self.seed,
        }
        return {name: value for name, value in given.items() if value is not None}


def chat(options: ChatOptions) -> int:
    """Answers one question, or all that are typed; returns the exit code.

    Raises:
        MlocError: If the model cannot be asked.
    """
    question = options.question
    if question is None and not sys.stdin.isatty():
        question = sys.stdin.read().strip()
        if not question:
            raise InputError("there is no question: mloc chat MODEL 'What is …?'")
    with quiet_terminal(redirect=not debugging()) as terminal, _answering(options) as answer:
        begun: Chat = [{"role": "system", "content": options.system}] if options.system else []
        if question is None:
            return _talk(answer, begun, options.model, terminal)
        try:
            _say(answer([*begun, {"role": "user", "content": question}]), terminal)
        except KeyboardInterrupt:
            terminal.out.print()
            return INTERRUPTED
        return OK


def _talk(answer: Answer, begun: Chat, model: str, terminal: Terminal) -> int:
    terminal.err.print(f"{model}: {_HELP}", style="dim", markup=False)
    said = list(begun)
    while True:
        try:
            question = terminal.out.input("› ").strip()
        except (EOFError, KeyboardInterrupt):
            terminal.out.print()
            return OK
        if question == "/exit":
            return OK
        if question == "/clear":
            said = list(begun)
        elif question:
            said = _turn(answer, [*said, {"role": "user", "content": question}], terminal)


def _turn(answer: Answer, asked: Chat, terminal: Terminal) -> Chat:
    """Returns the chat with its answer; without the question when there is none."""
    try:
        return [*asked, {"role": "assistant", "content": _say(answer(asked), terminal)}]
    except KeyboardInterrupt:
        terminal.out.print()
    except MlocError as error:
        terminal.err.print(f"mloc: {error}", markup=False)
    return asked[:-1]


def _say(pieces: Iterator[str], terminal: Terminal) -> str:
    said = ""
    for each in pieces:
        said += each
        terminal.out.print(each, end="", markup=False, soft_wrap=True)
        terminal.out.file.flush()
    terminal.out.print()
    return said


@contextmanager
def _answering(options: ChatOptions) -> Generator[Answer]:
    """Opens what answers: the API's workers, or a model in this process where there is no API."""
    with answering_api() as client:
        if client is not None:
            yield lambda said: client.chat(options.model, said, **options.fields)
            return
    yield _here(options)


def _here(options: ChatOptions) -> Answer:
    """Returns what answers with a model in this process; it is loaded with the first question."""
    import json

    from mloc_dagster.fleet import (
        Call,
        FailurePiece,
        RowsPiece,
        TextPiece,
        answer_call,
        new_model_cache,
        task_of,
    )
    from mloc_dagster.net import LOCAL
    from mloc_dagster.tasks import asked_template, call_rows

    document = json.dumps(asked_template(options.model))
    spec: Any = task_of(document).task.spec
    models = new_model_cache()

    def answer(said: Chat) -> Iterator[str]:
        messages: list[JsonValue] = [dict(each) for each in said]
        rows = call_rows(_ENDPOINT, {"messages": messages, **options.fields}, spec)
        pieces: SimpleQueue[Piece] = SimpleQueue()
        stopped = Event()
        call = Call("here", document, rows, stream=True)

        def work() -> None:
            pieces.put(answer_call(call, models, pieces.put, stopped.is_set, LOCAL))

        # In a thread, because Ctrl-C must not hit an engine in the middle of a step.
        thread = Thread(target=work)
        thread.start()
        try:
            while not isinstance(piece := pieces.get(), RowsPiece | FailurePiece):
                if isinstance(piece, TextPiece):
                    yield piece.text
        finally:
            stopped.set()
            thread.join()
        _check(piece)

    return answer


def _check(end: Piece) -> None:
    from mloc_dagster.fleet import FailurePiece, RowsPiece

    if isinstance(end, FailurePiece):
        raise (TransientError if end.retry else InputError)(end.message)
    if isinstance(end, RowsPiece) and end.rows[0].error is not None:
        raise InputError(end.rows[0].error)
