"""Interactive calls: requests that one worker answers now, beside its shards, and their answers.

A call is no ticket: nothing of it is kept. Who asked sends it again, or is told that it failed.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Protocol

import msgspec

from mloc_dagster.results import InputRow, OutputRow, ToolCallDelta

CALLER_TTL_S = 30.0
"""A caller that has not looked for pieces for so long has gone."""

SIGN_OF_LIFE_S = 1.0
"""A worker sends at least one piece in this time, also while it loads the model."""


class Call(msgspec.Struct, frozen=True):
    """What a caller wants answered.

    Attributes:
        call_id: Unique.
        document: A template with one task: the model, and how it answers where a row does not say.
        rows: The texts or chats.
        stream: Whether text is wanted as it is generated.
    """

    call_id: str
    document: str
    rows: list[InputRow]
    stream: bool = False


class TextPiece(msgspec.Struct, frozen=True, tag="text"):
    """What was generated since the last piece.

    Attributes:
        choice: Which answer; those of a row have the numbers behind those of the rows before it.
        text: The text; the pieces of an answer make up all of it.
    """

    choice: int
    text: str


class ReasoningPiece(msgspec.Struct, frozen=True, tag="reasoning"):
    """What the model thought since the last piece, before the text.

    Attributes:
        choice: Which answer.
        text: The thoughts.
    """

    choice: int
    text: str


class ToolCallPiece(msgspec.Struct, frozen=True, tag="tool_call"):
    """A call of a tool, or what one grew by since the last piece.

    Attributes:
        choice: Which answer.
        delta: The piece of the call.
    """

    choice: int
    delta: ToolCallDelta


type AnswerPiece = TextPiece | ReasoningPiece | ToolCallPiece


class RowsPiece(msgspec.Struct, frozen=True, tag="rows"):
    """The end of a call that was answered: its rows, in their order."""

    rows: list[OutputRow]


class FailurePiece(msgspec.Struct, frozen=True, tag="failure"):
    """The end of a call that was not.

    Attributes:
        message: Why.
        retry: Whether the same call may succeed a moment later, or on another worker.
    """

    message: str
    retry: bool = False


class SignOfLife(msgspec.Struct, frozen=True, tag="alive"):
    """The worker has the call, and nothing new to say."""


type Piece = TextPiece | ReasoningPiece | ToolCallPiece | RowsPiece | FailurePiece | SignOfLife


class Calls(Protocol):
    """Carries calls to workers, and pieces of answers back."""

    def send_call(self, worker_id: str, call: Call) -> None:
        """Hands a call to a worker; nothing tells whether it lives."""
        ...

    def next_call(self, worker_id: str, timeout_s: float) -> Call | None:
        """Takes the oldest call for a worker; waits for one. None when none came in time."""
        ...

    def end_wait_for_calls(self, worker_id: str) -> None:
        """Ends a `next_call` of a worker from another thread, or its next one."""
        ...

    def give_pieces(self, pieces: Mapping[str, Sequence[Piece]]) -> Collection[str]:
        """Sends pieces of answers, by the calls' ids.

        Returns:
            The calls among them that nobody waits for any longer.
        """
        ...

    def take_pieces(self, call_id: str, timeout_s: float) -> Sequence[Piece]:
        """Takes what has come for a caller; waits for something. Empty when nothing came in time.

        This also says that the caller is still there.
        """
        ...

    def hang_up(self, call_id: str) -> None:
        """Ends a call: its worker stops at its next piece."""
        ...
