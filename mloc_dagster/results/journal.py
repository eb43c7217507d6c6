"""The journal of rows that are computed in many steps: what is done of them, and not to do again.

A shard's journal lies below `journal/NNNN/`, in part files as its rows do: each is whole or not
there, and never changes. A file's name says which attempt wrote it, and its place among these:
`<attempt>-<number>-<token>-c<crc32>.jsonl`.

Two attempts may write at the same time, when the first was given up as lost and lives on. What
they wrote of a row is told apart by `Steps`: the later attempt began from what it had read, so from
its first entry of a row on, those of the earlier one do not count.

Nor may both make the same call. An attempt leaves `attempts/<attempt>-<token>` before it reads what
earlier ones have noted, and a call is noted before a look at who came later. Whichever of the two
comes first, one attempt sees the other: the later one finds the call and does not make it, or the
earlier one finds that it was overtaken.

A call may be answered by an agent, whose own turns and calls are noted as well: their entries name
the call in `caller`, and are numbered from 0 again.
"""

from __future__ import annotations

import re
import secrets
from collections import defaultdict
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Self
from zlib import crc32

import msgspec

from mloc_dagster.errors import DamagedFileError, TransientError
from mloc_dagster.planning import Shard
from mloc_dagster.results.batched_writer import BatchedWriter
from mloc_dagster.results.rows import Message, ToolCall
from mloc_dagster.results.store import Folder

CallKey = tuple[int, str]
"""A call: the turn whose answer has it, and its id."""

_PART = re.compile(r"journal/(\d{4,})/(\d+)-(\d+)-([0-9a-f]+)-c([0-9a-f]{8})\.jsonl")
_ATTEMPT = re.compile(r"journal/\d{4,}/attempts/(\d+)-([0-9a-f]+)")

_Attempt = tuple[int, str]
"""Its number and its token; the larger one came later."""


class ModelTurn(msgspec.Struct, frozen=True, omit_defaults=True, tag="model"):
    """What the model said.

    Attributes:
        index: The row.
        turn: Which of the row's turns, from 0.
        text: What it said.
        reasoning: What it thought before.
        tool_calls: What it called.
        finish_reason: Why it ended: `stop`, `length` or `tool_calls`.
        prompt_tokens: Tokens that it read.
        completion_tokens: Tokens that it wrote.
        reasoning_tokens: Those of them that were thoughts.
        cached_tokens: Tokens of the prompt that the engine had in its prefix cache.
        engine_s: The turn's share of the engine's busy seconds.
        seconds: How long it took.
        row_s: Seconds that workers have spent on the row when it was over.
        ended_at: When that was, in seconds since 1970.
        told: What the model was told after its turn before, where that was not just the answers to
            its calls: what was wrong with a call, or that it has to come to an end.
        caller: The call whose agent it is; None of the row's own.
    """

    index: int
    turn: int
    text: str = ""
    reasoning: str | None = None
    tool_calls: list[ToolCall] = []
    finish_reason: str = "stop"
    prompt_tokens: int = 0
    completion_tokens: int = 0
    reasoning_tokens: int = 0
    cached_tokens: int = 0
    engine_s: float = 0.0
    seconds: float = 0.0
    row_s: float = 0.0
    ended_at: float = 0.0
    told: list[Message] = []
    caller: CallKey | None = None


class CallBegun(msgspec.Struct, frozen=True, omit_defaults=True, tag="begun"):
    """A call that may change something is about to be made: this is written before it.

    Attributes:
        index: The row.
        turn: The turn whose answer has the call.
        call: The call's id.
        tool: What is called.
        caller: The call whose agent it is; None of the row's own.
    """

    index: int
    turn: int
    call: str
    tool: str
    caller: CallKey | None = None


class CallResult(msgspec.Struct, frozen=True, omit_defaults=True, tag="result"):
    """What a tool answered.

    Attributes:
        index: The row.
        turn: The turn whose answer has the call.
        call: The call's id.
        tool: What was called.
        output: Its answer, as the model reads it.
        failed: Whether it says what went wrong.
        seconds: How long it took.
        row_s: Seconds that workers have spent on the row when it was over.
        ended_at: When that was, in seconds since 1970.
        caller: The call whose agent it is; None of the row's own.
    """

    index: int
    turn: int
    call: str
    tool: str
    output: str
    failed: bool = False
    seconds: float = 0.0
    row_s: float = 0.0
    ended_at: float = 0.0
    caller: CallKey | None = None


Entry = ModelTurn | CallBegun | CallResult


class Brief(msgspec.Struct, frozen=True, omit_defaults=True):
    """What the rows of a shard have in common: what an agent is told and offered before it begins.

    Attributes:
        instructions: The system message before each row.
        tools: What the model may call, in OpenAI's form.
    """

    instructions: str | None = None
    tools: list[dict[str, Any]] = []


class Steps:
    """What a journal says of one row, or of one call that an agent answers.

    Attributes:
        turns: What the model said, by turn.
        results: What tools answered, by turn and call.
        begun: Calls that were about to be made, by turn and call.
        workers: What was done for calls that agents answer, by turn and call.
    """

    def __init__(self) -> None:
        self.turns: dict[int, ModelTurn] = {}
        self.results: dict[CallKey, CallResult] = {}
        self.begun: dict[CallKey, CallBegun] = {}
        self.workers: dict[CallKey, Steps] = {}

    def add(self, entry: Entry) -> None:
        """Takes an entry of the row; the first one of its kind and place counts."""
        steps = self if entry.caller is None else self.of_call(entry.caller)
        match entry:
            case ModelTurn():
                steps.turns.setdefault(entry.turn, entry)
            case CallResult():
                steps.results.setdefault((entry.turn, entry.call), entry)
            case CallBegun():
                steps.begun.setdefault((entry.turn, entry.call), entry)

    def of_call(self, caller: CallKey) -> Steps:
        """Returns the steps of the agent that answers a call; what is added to them stays."""
        return self.workers.setdefault(caller, Steps())

    def workers_of(self, turn: int) -> list[Steps]:
        """Returns the steps of the agents that a turn called, in the order of its calls."""
        said = self.turns.get(turn)
        calls = () if said is None else dict.fromkeys(each.id for each in said.tool_calls)
        return [self.workers[turn, call] for call in calls if (turn, call) in self.workers]

    def with_workers(self) -> Iterator[Steps]:
        """Yields these, and those of all agents below."""
        yield self
        for each in self.workers.values():
            yield from each.with_workers()

    @property
    def seconds(self) -> float:
        """Seconds that workers have spent on the row."""
        entries = (*self.turns.values(), *self.results.values())
        below = (each.seconds for each in self.workers.values())
        return max((*(each.row_s for each in entries), *below), default=0.0)

    def firsts(self) -> dict[CallKey | None, int]:
        """Returns the rank of the first entry, and of the first for each call; see `_rank`."""
        found: dict[CallKey | None, int] = {}
        for caller, steps in ((None, self), *self.workers.items()):
            ranks = [_rank(each) for each in steps.entries()]
            if caller is None:
                ranks += [_rank_of_calls(turn) for turn, _ in self.workers]
            if ranks:
                found[caller] = min(ranks)
        return found

    def entries(self) -> Iterator[Entry]:
        """Yields what was done, without what agents did for calls."""
        yield from (*self.turns.values(), *self.results.values(), *self.begun.values())


class Journal:
    """The journal of a shard, for one attempt.

    Args:
        folder: The task's folder.
        shard: Whose journal it is.
        attempt: Which attempt writes, from 1; a later one where the journal has that already.
        most: Entries that may wait to be written.
        interval_s: Seconds that an entry may wait.
    """

    def __init__(
        self, folder: Folder, shard: Shard, attempt: int, *, most: int, interval_s: float
    ) -> None:
        self._folder = folder
        self._shard = shard
        self._attempt: _Attempt = (attempt, secrets.token_hex(4))
        self._number = 0
        self._encode = msgspec.json.Encoder().encode
        self._batches = BatchedWriter(
            self._write, f"journal-{shard.key}", most=most, interval_s=interval_s
        )
        self._open = False
        self._brief: Brief | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._open:
            self._batches.__exit__(kind, error, traceback)

    def add(self, entry: Entry, *, now: bool = False) -> None:
        """Takes an entry.

        Args:
            entry: What was done.
            now: Whether it has to be on the store before this returns.
        """
        if not self._open:  # most shards have no journal, and need no thread for it
            self._open = True
            self._batches.__enter__()
        self._batches.add(entry)
        if now:
            self._batches.flush()

    def brief(self, brief: Brief) -> None:
        """Keeps what the rows have in common; that of an earlier attempt is replaced."""
        if brief != self._brief:
            self._brief = brief
            self._folder.write_bytes(_brief_name(self._shard), self._encode(brief))

    def take_over(self) -> dict[int, Steps]:
        """Ends what earlier attempts may do; returns what they have noted, by row."""
        number, token = self._attempt
        number = max(number, 1 + max((each for each, _ in self._attempts()), default=0))
        self._attempt = (number, token)
        self._folder.write_bytes(f"{self._place}/attempts/{number:04d}-{token}", b"")
        return journal_steps(self._folder, self._shard)

    def begin(self, call: CallBegun) -> None:
        """Notes that a call is about to be made; that is on the store when this returns.

        Raises:
            TransientError: If another attempt has taken the shard over, and may make the call.
        """
        self.add(call, now=True)
        if max(self._attempts(), default=self._attempt) > self._attempt:
            raise TransientError(f"another attempt works on shard {self._shard.key}")

    def _attempts(self) -> list[_Attempt]:
        names = self._folder.list(f"{self._place}/attempts")
        return [(int(m[1]), m[2]) for m in map(_ATTEMPT.fullmatch, names) if m is not None]

    @property
    def _place(self) -> str:
        return f"journal/{self._shard.key}"

    def _write(self, entries: list[Entry]) -> None:
        data = b"\n".join([*map(self._encode, entries), b""])
        self._number += 1
        number, token = self._attempt
        name = f"{number:04d}-{self._number:08d}-{token}-c{crc32(data):08x}.jsonl"
        self._folder.write_bytes(f"{self._place}/{name}", data)


def journal_steps(folder: Folder, shard: Shard) -> dict[int, Steps]:
    """Returns what the journal of a shard says, by row."""
    by_attempt: dict[_Attempt, list[Entry]] = defaultdict(list)
    for attempt, entry in journal_entries(folder, shard):
        by_attempt[attempt].append(entry)
    found: dict[int, Steps] = {}
    for attempt in sorted(by_attempt, reverse=True):
        _lay_under(found, by_attempt[attempt])
    return found


def journal_brief(folder: Folder, shard: Shard) -> Brief:
    """Returns what the rows of a shard have in common, as far as its journal knows."""
    name = _brief_name(shard)
    if not folder.exists(name):
        return Brief()
    return msgspec.json.decode(folder.read_bytes(name), type=Brief)


def _brief_name(shard: Shard) -> str:
    return f"journal/{shard.key}/brief.json"


def journal_entries(folder: Folder, shard: Shard) -> Iterator[tuple[_Attempt, Entry]]:
    """Yields the entries of a shard's journal, each with its attempt, in the order of writing.

    Raises:
        DamagedFileError: If a file is not what was written.
    """
    decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(Entry)
    for name in folder.list(f"journal/{shard.key}", recursive=True):
        match = _PART.fullmatch(name)
        if match is None:
            continue
        data = folder.read_bytes(name)
        if crc32(data) != int(match[5], 16):
            raise DamagedFileError(f"{folder.url}/{name}: its checksum is another one")
        for entry in decoder.decode_lines(data):
            yield (int(match[2]), match[4]), entry


def _lay_under(found: dict[int, Steps], entries: list[Entry]) -> None:
    """Adds what an earlier attempt noted, as far as later ones began from it."""
    begun_at = {index: steps.firsts() for index, steps in found.items()}
    for entry in entries:
        begun = begun_at.get(entry.index, {})
        if all(rank <= begun.get(caller, rank) for caller, rank in _ranks(entry)):
            found.setdefault(entry.index, Steps()).add(entry)


def _ranks(entry: Entry) -> Iterator[tuple[CallKey | None, int]]:
    """Yields where an entry comes: in its row, and in the call whose agent it is of."""
    if entry.caller is not None:
        yield None, _rank_of_calls(entry.caller[0])
    yield entry.caller, _rank(entry)


def _rank(entry: Entry) -> int:
    """Returns where an entry comes among its own: a turn of the model, then the calls in it."""
    return 2 * entry.turn if isinstance(entry, ModelTurn) else _rank_of_calls(entry.turn)


def _rank_of_calls(turn: int) -> int:
    return 2 * turn + 1
