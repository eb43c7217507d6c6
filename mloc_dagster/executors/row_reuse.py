"""Computing equal rows once: requests are compared by a digest, and the first one is computed."""

from __future__ import annotations

import time
from array import array
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

import msgspec

from mloc_dagster.executors.engines.protocol import Completion, EngineRequest
from mloc_dagster.results import InputRow, OutputRow
from mloc_dagster.schema import Inference, Pooling, canonical_json, digest_of

KEY_BYTES = 32
_NO_PART_OF_THE_ANSWER = {"error_budget", "seed"}  # the request has the seed that counts
_MOST_BLOCKS = 1024


class RequestKeys:
    """Digests requests; requests with equal digests have equal answers.

    Args:
        identity: Digest of what answers: model, adapters, engine. Empty within a task, where
            they are the same for all rows.
    """

    def __init__(self, identity: bytes = b"") -> None:
        self._identity = identity
        self._blocks: dict[int, tuple[Inference | Pooling, bytes]] = {}

    def of(self, request: EngineRequest) -> bytes | None:
        """Returns a request's digest; None when an equal request may have another answer."""
        sampling, block = request.sampling, request.sampling or request.pooling
        if sampling is not None and not sampling.deterministic:
            return None
        if block is None and request.rendered.pair is None:
            return None
        seeded = sampling is not None and not sampling.greedy
        rendered = request.rendered
        return digest_of(
            self._identity,
            rendered.text,
            array("q", request.tokens).tobytes(),
            rendered.image_ids,
            b"pair" if block is None else self._block(block),
            rendered.pair,
            request.second,
            request.seed if seeded else None,
            request.adapter,
        )

    def _block(self, block: Inference | Pooling) -> bytes:
        # Rows with equal options share one block, which is kept so that its id stays its own.
        known = self._blocks.get(id(block))
        if known is None:
            fields = block.model_dump(mode="json", exclude=_NO_PART_OF_THE_ANSWER)
            known = block, digest_of(type(block).__name__, canonical_json(fields))
            if len(self._blocks) >= _MOST_BLOCKS:
                self._blocks.clear()
            self._blocks[id(block)] = known
        return known[1]


MOST_ANSWERS = 4096
MOST_ANSWER_BYTES = 32 << 20

MOST_WAITING = 4096
"""Rows that wait for an answer to one like them. Those that come then are computed: a generator
can let the engine work, which ends the waiting, only by giving it something."""


class KnownAnswers(Protocol):
    """Answers of earlier tasks."""

    def look_up(self, keys: Iterable[bytes]) -> dict[bytes, OutputRow]:
        """Returns the answers that are known."""
        ...

    def add(self, key: bytes, row: OutputRow) -> None:
        """Keeps an answer for later tasks."""
        ...


class RowReuse:
    """Stands between the rows of a shard and the engine.

    Answers of the shard's own rows are kept within bounds: the most recently used
    `MOST_ANSWERS`, in at most `MOST_ANSWER_BYTES`. At most `MOST_WAITING` rows wait for one.

    Args:
        keys: Tells which requests are the same.
        emit: Takes finished rows.
        known: Answers of earlier tasks, when these may be taken.
    """

    def __init__(
        self,
        keys: RequestKeys,
        emit: Callable[[OutputRow], None],
        known: KnownAnswers | None = None,
    ) -> None:
        self._keys = keys
        self._emit = emit
        self._known = known
        self._answers = _RecentAnswers()
        self._waiting: dict[bytes, _Waiting] = {}
        self._held = 0  # rows in all groups that wait
        self._key_of: dict[int, bytes] = {}  # of what the engine has, by the row's index

    def needed(self, windows: Iterable[list[EngineRequest]]) -> Iterator[EngineRequest]:
        """Yields the requests that have to be computed; the others' rows are emitted in time."""
        for window in windows:
            keys = [self._keys.of(request) for request in window]
            found = self._look_up(key for key in keys if key is not None)
            for request, key in zip(window, keys, strict=True):
                if key is None or self._is_computed(request, key, found):
                    yield request

    def settle(
        self, request: EngineRequest, row: OutputRow, completion: Completion | None = None
    ) -> None:
        """Emits what became of a request, and the rows that waited for it.

        Args:
            request: The request.
            row: What became of it.
            completion: Its answer; None when it failed.
        """
        self._emit(row)
        key = self._key_of.pop(row.index, None)
        if key is None:
            return
        group = self._waiting.pop(key)
        self._answers.put(key, row)
        if self._known is not None and completion is not None and _is_whole(request, completion):
            self._known.add(key, row)
        self._held -= len(group.rows)
        for each, since in group.rows:
            self._emit(_copy(row, each, since))

    def _look_up(self, keys: Iterable[bytes]) -> dict[bytes, OutputRow]:
        if self._known is None:
            return {}
        unknown = {key for key in keys if key not in self._waiting and key not in self._answers}
        return self._known.look_up(unknown)

    def _is_computed(
        self, request: EngineRequest, key: bytes, found: dict[bytes, OutputRow]
    ) -> bool:
        now, row = time.monotonic(), request.row
        if (group := self._waiting.get(key)) is not None:
            if self._held >= MOST_WAITING:
                return True
            self._held += 1
            # Most duplicates say the same in the same words, which are kept once.
            if row.prompt == group.first.prompt:
                row = msgspec.structs.replace(row, prompt=group.first.prompt)
            group.rows.append((row, now))
        elif (answer := self._answers.get(key)) is not None:
            self._emit(_copy(answer, row, now))
        elif (answer := found.get(key)) is not None:
            self._emit(_copy(answer, row, now, "cache"))
        else:
            self._waiting[key] = _Waiting(row)
            self._key_of[row.index] = key
            return True
        return False


@dataclass(slots=True)
class _Waiting:
    first: InputRow
    rows: list[tuple[InputRow, float]] = field(default_factory=list)


class _RecentAnswers:
    """The most recently used answers, encoded: what they hold is what they cost."""

    def __init__(self) -> None:
        self._kept: OrderedDict[bytes, bytes] = OrderedDict()
        self._bytes = 0
        self._encode = msgspec.msgpack.Encoder().encode
        self._decode = msgspec.msgpack.Decoder(OutputRow).decode

    def __contains__(self, key: bytes) -> bool:
        return key in self._kept

    def get(self, key: bytes) -> OutputRow | None:
        encoded = self._kept.get(key)
        if encoded is None:
            return None
        self._kept.move_to_end(key)
        return self._decode(encoded)

    def put(self, key: bytes, row: OutputRow) -> None:
        encoded = self._encode(msgspec.structs.replace(row, prompt=""))
        self._bytes += len(encoded) - len(self._kept.pop(key, b""))
        self._kept[key] = encoded
        while len(self._kept) > MOST_ANSWERS or self._bytes > MOST_ANSWER_BYTES:
            _, oldest = self._kept.popitem(last=False)
            self._bytes -= len(oldest)


def _copy(answer: OutputRow, row: InputRow, since: float, origin: str = "task") -> OutputRow:
    """Returns the answer as that of another row; an error is the same error, and saves nothing."""
    failed = answer.error is not None
    return msgspec.structs.replace(
        answer,
        index=row.index,
        prompt=row.prompt,
        custom_id=row.custom_id,
        encoding=row.encoding,
        latency_s=time.monotonic() - since,
        cached_tokens=0,
        padding_tokens=0,
        engine_s=0.0,
        energy_j=None,
        reused="" if failed else origin,
        saved_s=0.0 if failed else answer.engine_s,
    )


def _is_whole(request: EngineRequest, completion: Completion) -> bool:
    """Tells whether an answer holds wherever the model runs.

    One that the engine's own limit cut short does not: that may depend on the machine's memory.
    """
    sampling = request.sampling
    return sampling is None or all(
        answer.finish_reason == "stop" or answer.tokens >= sampling.max_tokens
        for answer in completion.answers
    )
