"""Segments: immutable files of the row cache, each an index by key and the rows behind it.

    magic · number of rows · crc of the index · key prefixes, sorted · offsets · records

A record repeats its whole key and has a checksum of its own, so that neither a prefix that two
keys share nor a damaged file can give a row to the wrong key.
"""

from __future__ import annotations

import struct
import sys
from array import array
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import IO
from zlib import crc32

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
