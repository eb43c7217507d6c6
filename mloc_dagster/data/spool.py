"""Spooling: a task's rows are written once, as files that every shard can read again.

Rows are written once, in order of place, as `input/<first place>.jsonl` chunks of `InputRow`
lines, and `plan.json` last: with it the input is complete, without it the spooling starts over.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Callable, Collection, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol
from zlib import crc32

import msgspec

from mloc_dagster.data.images import externalize
from mloc_dagster.data.row_shape import check_evaluation, with_references
from mloc_dagster.data.rows import RowsBlock, open_rows
from mloc_dagster.errors import DataError
from mloc_dagster.planning import (
    Chunk,
    CostWeights,
    Expectation,
    LoadLine,
    Plan,
    RowKey,
    Shard,
    ShardLoad,
    cut_shards,
    planned_order,
    row_load,
    shard_count,
    shared_beginnings,
    tokens_along,
)
from mloc_dagster.results import (
    UPSTREAM_FAULT,
    ColumnWriter,
    Folder,
    InputRow,
    Message,
    SourceRow,
    damaged,
    read_plan,
    write_plan,
)
from mloc_dagster.schema import (
    HALF_A_CHARACTER,
    RowEvaluation,
)

_ENCODE = msgspec.json.Encoder().encode


def row_key(row: SourceRow) -> RowKey:
    """Returns the row's key: equal for rows with the same input, near for common beginnings."""
    adapter = row.adapter or ""
    judged = row.answer
    passages = row.retrieved or row.chunks or (judged and judged.retrieved) or ()
    texts = [each.text for each in passages]
    more = "".join(texts if judged is None else [*texts, judged.output])
    names = [each.id for each in passages]
    if isinstance(row.prompt, str):
        # No hash of a text can be empty, so that a text and messages are never equal.
        plain = row.options is None and not names
        rest = b"" if plain else b"text" + _digest([row.prompt, row.options, names])
        return RowKey(adapter, row.prompt + more, rest)
    text = "".join(map(_message_text, row.prompt))
    return RowKey(adapter, text + more, _digest([row.prompt, row.options, names]))


def image_count(row: SourceRow) -> int:
    """Returns how many images the row carries."""
    if isinstance(row.prompt, str):
        return 0
    return sum(
        part.get("type") != "text"
        for message in row.prompt
        if not isinstance(message.content, str)
        for part in message.content
    )


def _message_text(message: Message) -> str:
    # About as many tokens as a chat template puts around a message.
    content = message.content
    text = content if isinstance(content, str) else "".join(map(_part_text, content))
    return f"<{message.role}>\n{text}\n"


def _part_text(part: dict[str, Any]) -> str:
    if part.get("type") == "text":
        return str(part.get("text", ""))
    # Equal images have equal names; the picture itself may be megabytes of base64.
    return f"<{part.get('type')} {_digest(part)[:6].hex()}>"


def _digest(value: object) -> bytes:
    return hashlib.blake2b(_ENCODE(value), digest_size=16).digest()


WINDOW_ROWS = 1 << 17
WINDOW_BYTES = 64 << 20
"""A window ends with the row that reaches either bound, counting encoded inputs and expected
results: readers hold one window to put results back in input order."""

IMAGE_TOKENS = 576  # a CLIP ViT-L/14 at 336 pixels; balancing needs no better


class CountsTokens(Protocol):
    """Counts tokens of texts.

    Attributes:
        source: Who counts, or how it is estimated, for people.
        counted: Whether it counts.
    """

    @property
    def source(self) -> str:
        """Who counts."""
        ...

    @property
    def counted(self) -> bool:
        """Whether this is no estimate."""
        ...

    def __call__(self, texts: Sequence[str]) -> Sequence[int]:
        """Returns the tokens of each text, without special ones."""
        ...


@dataclass(frozen=True, slots=True)
class RowForecast:
    """What a row is expected to become.

    Attributes:
        output_tokens: Tokens written.
        result_bytes: Encoded size of its result, the input aside.
        repeatable: Whether a row with the same input gets the same answer.
    """

    output_tokens: int
    result_bytes: int
    repeatable: bool


@dataclass(frozen=True, slots=True)
class InputPlanning:
    """How a task's rows are weighed.

    Attributes:
        count_tokens: Counts the tokens of prompts.
        forecast: Says what a row is expected to become.
        weights: How the engine spends its time.
    """

    count_tokens: CountsTokens
    forecast: Callable[[SourceRow], RowForecast]
    weights: CostWeights


@dataclass(frozen=True, slots=True)
class _Spooled:
    line: bytes
    key: RowKey
    images: int
    forecast: RowForecast


class PlannedInput:
    """Puts rows in planned order, one window in memory at a time.

    Attributes:
        windows: The first index of each window so far.

    Args:
        planning: How rows are weighed.
    """

    def __init__(self, planning: InputPlanning) -> None:
        self._planning = planning
        self._loads = LoadLine()
        self.windows: list[int] = []

    def lines(self, rows: Iterable[tuple[SourceRow, bytes]]) -> Iterator[bytes]:
        """Yields the encoded rows in planned order.

        Args:
            rows: Each row with its encoded form, in order of index.
        """
        window: list[_Spooled] = []
        index = size = 0
        for row, line in rows:
            spooled = _Spooled(line, row_key(row), image_count(row), self._planning.forecast(row))
            window.append(spooled)
            index += 1
            size += len(line) + spooled.forecast.result_bytes
            if len(window) >= WINDOW_ROWS or size >= WINDOW_BYTES:
                yield from self._close(window, index)
                window, size = [], 0
        yield from self._close(window, index)

    def cut(self, task_id: str, max_shards: int) -> tuple[tuple[Shard, ...], Expectation]:
        """Cuts all rows into shards of equal expected cost, and says what each is to take."""
        cuts = self._loads.cut(max_shards)
        stops = [0, *(cut.stop for cut in cuts)]
        shards = tuple(
            Shard(task_id=task_id, index=index, total=len(cuts), start=start, stop=stop)
            for index, (start, stop) in enumerate(pairwise(stops))
        )
        weights, count_tokens = self._planning.weights, self._planning.count_tokens
        expected = Expectation(
            tokens=count_tokens.source,
            counted=count_tokens.counted,
            prefill=weights.prefill,
            decode=weights.decode,
            block_tokens=weights.block_tokens,
            shards=tuple(
                ShardLoad(
                    prompt_tokens=cut.prompt_tokens,
                    cached_tokens=cut.cached_tokens,
                    output_tokens=cut.output_tokens,
                    cost=round(cut.cost, 3),
                )
                for cut in cuts
            ),
        )
        return shards, expected

    def _close(self, rows: list[_Spooled], stop: int) -> Iterator[bytes]:
        if not rows:
            return
        self.windows.append(stop - len(rows))
        ordered = [rows[place] for place in planned_order([row.key for row in rows])]
        self._weigh(ordered)
        for row in ordered:
            yield row.line

    def _weigh(self, rows: list[_Spooled]) -> None:
        shared = list(shared_beginnings([row.key for row in rows]))
        tails = [row.key.text[common:] for row, common in zip(rows, shared, strict=True)]
        counts = self._planning.count_tokens(tails)
        lengths = [len(row.key.text) for row in rows]
        before: RowKey | None = None
        for row, (prompt, known) in zip(rows, tokens_along(lengths, shared, counts), strict=True):
            same = row.key == before
            load = row_load(
                prompt + row.images * IMAGE_TOKENS,
                known,
                row.forecast.output_tokens,
                self._planning.weights,
                copied=same and row.forecast.repeatable,
            )
            self._loads.add(load, same=same)
            before = row.key


INPUT_NAME = "input"
_SUFFIX = ".jsonl"
CHUNK_ROWS = 1024
CHUNK_BYTES = 8 << 20
"""A chunk ends with the row that reaches either bound; it is what the spool holds in memory."""


def spool_input(
    task_id: str,
    data: RowsBlock,
    folder: Folder,
    max_shards: int,
    seed: int,
    upstream: Mapping[str, Folder],
    planning: InputPlanning | None = None,
    evaluation: RowEvaluation | None = None,
    *,
    shard_rows: int = 1,
    takes: Collection[str] = (),
) -> Plan:
    """Writes a task's input and plan; with a plan already there, returns it unchanged.

    Args:
        task_id: The task.
        data: Where its rows come from.
        folder: The task's folder.
        max_shards: Upper bound for the number of shards.
        seed: The seed for sampling, to be kept in the plan.
        upstream: Folders of the finished tasks before this one, by node name.
        planning: How to weigh and order rows; None leaves them in input order and cuts shards
            of equally many.
        evaluation: How answers will be scored; None if they will not.
        shard_rows: Rows that a shard is to have about, if there are as many.
        takes: What rows of an earlier task bring along; see `RowSpec.takes`.

    Raises:
        DataError: If the input is missing, unreadable or empty, or lacks the column with the right
            answers.
    """
    plan = read_plan(folder)
    if plan is not None:
        return plan
    source, rows, types = open_rows(data, upstream, takes)
    folder.delete(INPUT_NAME)
    digest = hashlib.sha256()
    labels = () if evaluation is None else [each.label for each in evaluation.row_metrics]
    columns = ColumnWriter(folder, types, taken=labels)
    encoded = _encode(externalize(rows, folder), digest.update, columns)
    planned = None if planning is None else PlannedInput(planning)
    lines = (line for _, line in encoded) if planned is None else planned.lines(encoded)
    chunks = tuple(_write_chunks(folder, lines))
    if not chunks:
        raise DataError(f"the input is empty: {source} gave no rows")
    count = chunks[-1].start + chunks[-1].rows
    windows: tuple[int, ...] = ()
    expected = None
    max_shards = shard_count(count, max_shards, shard_rows)
    if planned is None:
        shards = tuple(cut_shards(task_id, count, max_shards))
    else:
        windows = tuple(planned.windows)
        shards, expected = planned.cut(task_id, max_shards)
    carried = columns.close()
    if evaluation is not None:
        check_evaluation(evaluation, () if carried is None else carried.names)
    if carried is not None:
        digest.update(carried.model_dump_json().encode())  # it has the checksums of its files
    plan = Plan(
        task_id=task_id,
        source=source,
        rows=count,
        data_version=digest.hexdigest(),
        seed=seed,
        chunks=chunks,
        shards=shards,
        windows=windows,
        expected=expected,
        columns=carried,
    )
    write_plan(folder, plan)
    return plan


def respool_failed(
    plan: Plan,
    data: RowsBlock,
    folder: Folder,
    upstream: Mapping[str, Folder],
    takes: Collection[str] = (),
) -> Plan:
    """Spools the rows anew that had failed upstream, when the tasks before have been tried again.

    All others, and the place of each, stay as they are: what was computed of them stays right.

    Args:
        plan: The task's plan.
        data: Where its rows come from.
        folder: The task's folder.
        upstream: Folders of the finished tasks before this one, by node name.
        takes: As for `spool_input`.

    Returns:
        The plan with the new input.

    Raises:
        DataError: If there are more or fewer rows now.
    """
    every = read_input(folder, plan, 0, plan.rows)
    places = {row.index: place for place, row in enumerate(every) if row.fault == UPSTREAM_FAULT}
    if not places:
        return plan
    source, rows, _ = open_rows(data, upstream, takes)
    digest = hashlib.sha256()
    chunks = list(plan.chunks)
    lines: dict[int, bytes] = {}
    count = size = 0
    for _, line in _encode(externalize(rows, folder), digest.update):
        if count in places:
            lines[places[count]] = line
            size += len(line)
        count += 1
        if size >= WINDOW_BYTES:
            chunks = [_with_lines(folder, chunk, lines) for chunk in chunks]
            lines, size = {}, 0
    if count != plan.rows:
        raise DataError(f"{source} gave {plan.rows:,} rows when the task began, and {count:,} now")
    chunks = [_with_lines(folder, chunk, lines) for chunk in chunks]
    update = {"chunks": tuple(chunks), "data_version": digest.hexdigest()}
    renewed = plan.model_copy(update=update)
    write_plan(folder, renewed)
    kept = {chunk.name for chunk in chunks}
    for name in folder.list(INPUT_NAME):
        if name.endswith(_SUFFIX) and name not in kept:
            folder.delete(name)
    return renewed


def read_input(
    folder: Folder, plan: Plan, start: int, stop: int, skip: Container[int] = ()
) -> Iterator[InputRow]:
    """Streams rows of the spooled input in order of place; see `read_places`."""
    return (row for _, row in read_places(folder, plan, start, stop, skip))


def read_places(
    folder: Folder, plan: Plan, start: int, stop: int, skip: Container[int] = ()
) -> Iterator[tuple[int, InputRow]]:
    """Streams rows of the spooled input with their places, reading only the chunks that hold them.

    Args:
        folder: The task's folder.
        plan: The task's plan.
        start: First place.
        stop: Place after the last.
        skip: Places to leave out: those that are done.

    Raises:
        DamagedFileError: If a chunk is not what was spooled.
    """
    if start >= stop:
        return
    decode = msgspec.json.Decoder(InputRow).decode
    first = max(bisect_right(plan.chunks, start, key=lambda chunk: chunk.start) - 1, 0)
    for chunk in plan.chunks[first:]:
        if chunk.start >= stop:
            return
        # The chunk's name and the line tell a row's place: others are not even decoded.
        for place, line in enumerate(_read_chunk(folder, chunk), start=chunk.start):
            if place >= stop:
                return
            if place >= start and place not in skip:
                yield place, decode(line)


def _encode(
    rows: Iterable[SourceRow],
    hash_bytes: Callable[[bytes], None],
    columns: ColumnWriter | None = None,
) -> Iterator[tuple[SourceRow, bytes]]:
    encode = msgspec.json.Encoder().encode
    for index, row in enumerate(rows):
        if columns is not None:
            columns.add(with_references(row))
        if row.columns is not None:
            row = msgspec.structs.replace(row, columns=None)
        try:
            encoded = encode(row)
        except UnicodeEncodeError:
            row = _unreadable(row)
            encoded = encode(row)
        hash_bytes(encoded)
        hash_bytes(b"\n")
        yield row, b'{"index":%d,%b\n' % (index, encoded[1:])


def _unreadable(row: SourceRow) -> SourceRow:
    """Returns a row that ends with an error; what is no character is escaped, as JSON does it."""
    escaped = msgspec.convert(_escaped(msgspec.to_builtins(row)), SourceRow)
    return msgspec.structs.replace(escaped, error=escaped.error or HALF_A_CHARACTER)


def _escaped(value: Any) -> Any:
    match value:
        case str():
            return value.encode("utf-8", "backslashreplace").decode()
        case dict():
            return {_escaped(key): _escaped(each) for key, each in value.items()}
        case list():
            return [_escaped(each) for each in value]
        case _:
            return value


def _write_chunks(folder: Folder, encoded: Iterable[bytes]) -> Iterator[Chunk]:
    lines: list[bytes] = []
    start = size = 0
    for place, line in enumerate(encoded):
        lines.append(line)
        size += len(line)
        if len(lines) >= CHUNK_ROWS or size >= CHUNK_BYTES:
            yield _write_chunk(folder, start, lines)
            start, size, lines = place + 1, 0, []
    if lines:
        yield _write_chunk(folder, start, lines)


def _write_chunk(folder: Folder, start: int, lines: list[bytes]) -> Chunk:
    name = f"{INPUT_NAME}/{start:012d}{_SUFFIX}"
    data = b"".join(lines)
    folder.write_bytes(name, data)
    return Chunk(name=name, start=start, rows=len(lines), crc32=crc32(data))


def _with_lines(folder: Folder, chunk: Chunk, lines: Mapping[int, bytes]) -> Chunk:
    """Returns a chunk with other lines at some places, in a file of its own."""
    if not any(chunk.start <= place < chunk.start + chunk.rows for place in lines):
        return chunk
    old = [line + b"\n" for line in _read_chunk(folder, chunk)]
    data = b"".join(lines.get(place, line) for place, line in enumerate(old, start=chunk.start))
    checksum = crc32(data)
    name = f"{INPUT_NAME}/{chunk.start:012d}.{checksum:08x}{_SUFFIX}"
    folder.write_bytes(name, data)
    return chunk.model_copy(update={"name": name, "crc32": checksum})


def _read_chunk(folder: Folder, chunk: Chunk) -> list[bytes]:
    data = folder.read_bytes(chunk.name)
    if chunk.crc32 is not None and crc32(data) != chunk.crc32:
        raise damaged(folder, chunk.name, "its checksum is another one")
    return data.splitlines()
