"""Spooling a task's input: any source becomes files that every shard can read again.

Rows are written once, in order of place, as `input/<first place>.jsonl` chunks of `InputRow`
lines, and `plan.json` last: with it the input is complete, without it the spooling starts over.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from typing import Any
from zlib import crc32

import msgspec

from mloc_dagster.data.inline_images import externalize
from mloc_dagster.data.planned_spool import InputPlanning, PlannedInput
from mloc_dagster.data.rows import open_rows
from mloc_dagster.errors import DataError
from mloc_dagster.planning.plan import Chunk, Plan
from mloc_dagster.planning.shards import cut_shards
from mloc_dagster.results.plan_file import damaged, read_plan, write_plan
from mloc_dagster.results.rows import InputRow, SourceRow
from mloc_dagster.results.store import Folder
from mloc_dagster.schema.data import InferenceData
from mloc_dagster.schema.hints import HALF_A_CHARACTER

INPUT_NAME = "input"
CHUNK_ROWS = 1024
CHUNK_BYTES = 8 << 20
"""A chunk ends with the row that reaches either bound; it is what the spool holds in memory."""


def spool_input(
    task_id: str,
    data: InferenceData,
    folder: Folder,
    max_shards: int,
    seed: int,
    upstream: Mapping[str, Folder],
    planning: InputPlanning | None = None,
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

    Raises:
        DataError: If the input is missing, unreadable or empty.
    """
    plan = read_plan(folder)
    if plan is not None:
        return plan
    source, rows = open_rows(data, upstream)
    folder.delete(INPUT_NAME)
    digest = hashlib.sha256()
    encoded = _encode(externalize(rows, folder), digest.update)
    planned = None if planning is None else PlannedInput(planning)
    lines = (line for _, line in encoded) if planned is None else planned.lines(encoded)
    chunks = tuple(_write_chunks(folder, lines))
    if not chunks:
        raise DataError(f"the input is empty: {source} gave no rows")
    count = chunks[-1].start + chunks[-1].rows
    windows: tuple[int, ...] = ()
    expected = None
    if planned is None:
        shards = tuple(cut_shards(task_id, count, max_shards))
    else:
        windows = tuple(planned.windows)
        shards, expected = planned.cut(task_id, max_shards)
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
    )
    write_plan(folder, plan)
    return plan


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
    rows: Iterable[SourceRow], hash_bytes: Callable[[bytes], None]
) -> Iterator[tuple[SourceRow, bytes]]:
    encode = msgspec.json.Encoder().encode
    for index, row in enumerate(rows):
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
    name = f"{INPUT_NAME}/{start:012d}.jsonl"
    data = b"".join(lines)
    folder.write_bytes(name, data)
    return Chunk(name=name, start=start, rows=len(lines), crc32=crc32(data))


def _read_chunk(folder: Folder, chunk: Chunk) -> list[bytes]:
    data = folder.read_bytes(chunk.name)
    if chunk.crc32 is not None and crc32(data) != chunk.crc32:
        raise damaged(folder, chunk.name, "its checksum is another one")
    return data.splitlines()
