"""The row cache: answers of earlier tasks, by a digest of everything that could change them.

One folder per model and engine holds immutable segments, which appear whole
under names that nobody else uses: any number of writers and readers share them without a lock,
on any store. A cache may lose rows and never gives a wrong one; what it cannot read or write it
does without, and says so once.

    magic · number of rows · crc of the index · key prefixes, sorted · offsets · records

A record repeats its whole key and has a checksum of its own, so that neither a prefix that two
keys share nor a damaged file can give a row to the wrong key.
"""

from __future__ import annotations

import secrets
import struct
import sys
import time
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import IO
from zlib import crc32

import msgspec

from mloc_dagster.results.rows import OutputRow
from mloc_dagster.results.store import Folder

MAGIC = b"mlocrow1"
KEY_BYTES = 32
_HEAD = struct.Struct("<8sQI")
_RECORD = struct.Struct(f"<{KEY_BYTES}sII")
_PREFIX_BYTES = 8
_MOST_ROWS = 1 << 28


class DamagedSegmentError(ValueError):
    """A segment is not what was written."""


@dataclass(frozen=True, slots=True)
class SegmentIndex:
    """Where the records of a segment begin.

    Attributes:
        prefixes: The first 8 bytes of each key as a number, sorted.
        offsets: Where the record of the same place begins in the file.
    """

    prefixes: array[int]
    offsets: array[int]

    @property
    def size_bytes(self) -> int:
        """Memory that it takes."""
        return len(self.prefixes) * 2 * _PREFIX_BYTES

    def find(self, key: bytes) -> list[int]:
        """Returns the offsets of the records that may have this key."""
        prefix = int.from_bytes(key[:_PREFIX_BYTES])
        place = bisect_left(self.prefixes, prefix)
        found: list[int] = []
        while place < len(self.prefixes) and self.prefixes[place] == prefix:
            found.append(self.offsets[place])
            place += 1
        return found


def pack_segment(rows: Mapping[bytes, bytes]) -> bytes:
    """Returns a segment with these rows, by key of 32 bytes."""
    keys = sorted(rows)
    prefixes = array("Q", (int.from_bytes(key[:_PREFIX_BYTES]) for key in keys))
    offsets = array("Q")
    offset = _HEAD.size + len(keys) * 2 * _PREFIX_BYTES
    records: list[bytes] = []
    for key in keys:
        payload = rows[key]
        offsets.append(offset)
        records += [_RECORD.pack(key, crc32(payload, crc32(key)), len(payload)), payload]
        offset += _RECORD.size + len(payload)
    index = _to_bytes(prefixes) + _to_bytes(offsets)
    return b"".join([_HEAD.pack(MAGIC, len(keys), crc32(index)), index, *records])


def read_index(file: IO[bytes]) -> SegmentIndex:
    """Reads the index at the head of a segment.

    Raises:
        DamagedSegmentError: If it is none, or not whole.
    """
    head = file.read(_HEAD.size)
    if len(head) < _HEAD.size:
        raise DamagedSegmentError("it is too short")
    magic, rows, checksum = _HEAD.unpack(head)
    if magic != MAGIC or rows > _MOST_ROWS:
        raise DamagedSegmentError("it is no segment")
    index = file.read(rows * 2 * _PREFIX_BYTES)
    if len(index) < rows * 2 * _PREFIX_BYTES or crc32(index) != checksum:
        raise DamagedSegmentError("its index is damaged")
    middle = rows * _PREFIX_BYTES
    return SegmentIndex(_from_bytes(index[:middle]), _from_bytes(index[middle:]))


def read_record(file: IO[bytes], offset: int) -> tuple[bytes, bytes]:
    """Returns the whole key and the payload of a record.

    Raises:
        DamagedSegmentError: If it is not what was written.
    """
    file.seek(offset)
    head = file.read(_RECORD.size)
    if len(head) < _RECORD.size:
        raise DamagedSegmentError("it is cut off")
    key, checksum, size = _RECORD.unpack(head)
    payload = file.read(size)
    if len(payload) < size or crc32(payload, crc32(key)) != checksum:
        raise DamagedSegmentError("a row in it is damaged")
    return key, payload


def read_records(file: IO[bytes]) -> Iterator[tuple[bytes, bytes]]:
    """Yields all keys and payloads of a segment; see `read_record`."""
    for offset in read_index(file).offsets:
        yield read_record(file, offset)


def _to_bytes(numbers: array[int]) -> bytes:
    if sys.byteorder == "big":
        numbers = numbers[:]
        numbers.byteswap()
    return numbers.tobytes()


def _from_bytes(data: bytes) -> array[int]:
    numbers = array("Q")
    numbers.frombytes(data)
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers


CACHE_FOLDER = ".row-cache/v1"
FLUSH_ROWS = 4096
FLUSH_BYTES = 8 << 20
MAX_INDEX_BYTES = 64 << 20
"""16 bytes a row: about 4 million rows of one model can be looked up, the newest ones."""
MERGE_AT_SEGMENTS = 32
MERGE_BYTES = 64 << 20


class RowCache:
    """The cached rows of one model and engine.

    Args:
        root: The folder of all caches.
        scope: Name of the folder of this model and engine.
        log: Takes a line for what went wrong.
        limit_bytes: Size of all caches together that is not to be exceeded; 0 is no limit.
        valid: Asked before rows are written; false throws them away.
    """

    def __init__(
        self,
        root: Folder,
        scope: str,
        log: Callable[[str], None],
        *,
        limit_bytes: int = 0,
        valid: Callable[[], bool] = lambda: True,
    ) -> None:
        self._root = root
        self._scope = scope
        self._log = log
        self._limit_bytes = limit_bytes
        self._valid = valid
        self._indexes: dict[str, SegmentIndex] | None = None
        self._new: dict[bytes, bytes] = {}
        self._new_bytes = 0
        self._off = False
        self._encode = msgspec.msgpack.Encoder().encode
        self._decode = msgspec.msgpack.Decoder(OutputRow).decode

    def look_up(self, keys: Iterable[bytes]) -> dict[bytes, OutputRow]:
        """Returns the rows that are known; index and prompt are not part of them."""
        wanted = set(keys)
        if not wanted or self._off:
            return {}
        try:
            return self._find(wanted)
        except Exception as error:  # noqa: BLE001 - whatever a store raises: rows are computed
            self._give_up(error)
            return {}

    def add(self, key: bytes, row: OutputRow) -> None:
        """Keeps a row for others; it is there for them once flushed."""
        if len(key) != KEY_BYTES or row.error is not None or self._off:
            return
        payload = self._encode(msgspec.structs.replace(row, index=0, prompt="", custom_id=None))
        self._new[key] = payload
        self._new_bytes += len(payload)
        if len(self._new) >= FLUSH_ROWS or self._new_bytes >= FLUSH_BYTES:
            self.flush()

    def flush(self) -> None:
        """Writes what was added as one segment."""
        rows, self._new, self._new_bytes = self._new, {}, 0
        if not rows or self._off:
            return
        try:
            if self._valid():
                self._root.write_bytes(self._name(time.time_ns()), pack_segment(rows))
        except Exception as error:  # noqa: BLE001 - as above
            self._give_up(error)

    def close(self) -> None:
        """Writes what is left, merges small segments, and keeps to the limit."""
        self.flush()
        if self._off:
            return
        try:
            self._merge()
            if self._limit_bytes:
                prune(self._root, self._limit_bytes)
        except Exception as error:  # noqa: BLE001 - as above
            self._give_up(error)

    def _find(self, wanted: set[bytes]) -> dict[bytes, OutputRow]:
        if self._indexes is None:
            self._indexes = self._read_indexes()
        found: dict[bytes, OutputRow] = {}
        for name, index in list(self._indexes.items()):
            places = sorted((at, key) for key in wanted for at in index.find(key))
            if places:
                found |= self._read(name, places)
                wanted = wanted - found.keys()
        return found

    def _read(self, name: str, places: list[tuple[int, bytes]]) -> dict[bytes, OutputRow]:
        found: dict[bytes, OutputRow] = {}
        try:
            with self._root.open(name) as file:
                for offset, wanted in places:
                    key, payload = read_record(file, offset)
                    if key == wanted:
                        found[key] = self._decode(payload)
        except FileNotFoundError:
            self._forget(name)  # merged or pruned meanwhile
        except (DamagedSegmentError, msgspec.MsgspecError) as error:
            self._forget(name)
            self._log(f"reuse: {self._root.url}/{name} is ignored: {error}")
        return found

    def _read_indexes(self) -> dict[str, SegmentIndex]:
        indexes: dict[str, SegmentIndex] = {}
        size = 0
        for name in sorted(self._segments(), reverse=True):  # newest first
            try:
                with self._root.open(name) as file:
                    index = read_index(file)
            except FileNotFoundError:
                continue
            except DamagedSegmentError as error:
                self._log(f"reuse: {self._root.url}/{name} is ignored: {error}")
                continue
            size += index.size_bytes
            if size > MAX_INDEX_BYTES:
                self._log(f"reuse: only the newest {len(indexes)} segments are looked into")
                break
            indexes[name] = index
        return indexes

    def _merge(self) -> None:
        sizes = self._segments()
        small = [name for name in sorted(sizes) if sizes[name] < MERGE_BYTES // 4]
        if len(small) < MERGE_AT_SEGMENTS:
            return
        rows: dict[bytes, bytes] = {}
        merged: list[str] = []
        size = 0
        for name in small:
            if size + sizes[name] > MERGE_BYTES:
                break
            size += sizes[name]
            merged.append(name)
            try:
                with self._root.open(name) as file:
                    rows.update(read_records(file))
            except FileNotFoundError:
                continue  # another shard merges it, or it was pruned
            except DamagedSegmentError as error:
                self._log(f"reuse: {self._root.url}/{name} is removed: {error}")
        if rows:
            self._root.write_bytes(self._name(_age(merged[-1])), pack_segment(rows))
        for name in merged:
            self._root.delete(name)

    def _segments(self) -> dict[str, int]:
        return _segments(self._root, self._scope)

    def _name(self, age_ns: int) -> str:
        return f"{self._scope}/{age_ns:020d}-{secrets.token_hex(6)}.rows"

    def _forget(self, name: str) -> None:
        if self._indexes is not None:
            self._indexes.pop(name, None)

    def _give_up(self, error: Exception) -> None:
        self._off = True
        self._log(f"reuse: off, {self._root.url}: {type(error).__name__}: {error}")


def prune(root: Folder, limit_bytes: int) -> None:
    """Deletes the oldest segments of all caches until no more than `limit_bytes` are left."""
    sizes = _segments(root)
    surplus = sum(sizes.values()) - limit_bytes
    for name in sorted(sizes, key=_age):
        if surplus <= 0:
            return
        root.delete(name)
        surplus -= sizes[name]


def _segments(root: Folder, below: str = "") -> dict[str, int]:
    found = root.sizes(below)
    return {name: size for name, size in found.items() if name.endswith(".rows")}


def _age(name: str) -> int:
    stamp = name.rpartition("/")[2].partition("-")[0]
    return int(stamp) if stamp.isdigit() else 0
