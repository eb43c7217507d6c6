"""Shuffling a stream: the whole of it with bounded memory, or within a moving window.

The full shuffle gives each row a random key and sorts by it. What outgrows the memory budget is
dealt by the key's leading bits into temporary files, which are then sorted one by one; the order
is that of the keys either way, so it depends on the seed alone.
"""

from __future__ import annotations

import pickle
import random
import struct
import tempfile
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

MEMORY_BYTES = 64 << 20
"""What the full shuffle holds in memory before it turns to temporary files."""

_KEY_BITS = 53  # the resolution of random(), whose sequence Python promises never to change
_FAN_BITS = 6  # 64 files open at once: below any limit on open files
_ROW_OVERHEAD = 200  # tuple, key, index and bytes header of one row in CPython
_HEADER = struct.Struct("<QQI")

_Entry = tuple[int, int, bytes]


def shuffle_all[RowT](
    rows: Iterable[RowT],
    seed: int,
    memory_bytes: int = MEMORY_BYTES,
) -> Iterator[RowT]:
    """Yields every row once, in an order that is uniformly random over the whole input.

    Args:
        rows: A stream; it is read to its end before the first row comes out.
        seed: Equal seeds give equal orders, on any machine and with any memory budget.
        memory_bytes: How much to hold before temporary files are used.
    """
    pack = partial(pickle.dumps, protocol=pickle.HIGHEST_PROTOCOL)
    draw = random.Random(seed).random  # noqa: S311 - a shuffle, not a secret
    keys = ((int(draw() * (1 << _KEY_BITS)), index, pack(row)) for index, row in enumerate(rows))
    for _, _, data in _sorted(keys, _KEY_BITS - _FAN_BITS, memory_bytes):
        yield pickle.loads(data)  # noqa: S301 - what this process has written


def shuffle_window[RowT](rows: Iterable[RowT], seed: int, buffer_size: int) -> Iterator[RowT]:
    """Yields every row once; each is drawn from a window of the next `buffer_size` rows."""
    draw = random.Random(seed).random  # noqa: S311 - a shuffle, not a secret
    window: list[RowT] = []
    for row in rows:
        if len(window) < buffer_size:
            window.append(row)
            continue
        place = int(draw() * buffer_size)
        yield window[place]
        window[place] = row
    while window:
        place = int(draw() * len(window))
        window[place], window[-1] = window[-1], window[place]
        yield window.pop()


def _sorted(entries: Iterator[_Entry], shift: int, memory_bytes: int) -> Iterator[_Entry]:
    held: list[_Entry] = []
    size = 0
    for entry in entries:
        held.append(entry)
        size += len(entry[2]) + _ROW_OVERHEAD
        if size > memory_bytes and shift > 0 and len(held) > 1:
            break
    else:
        held.sort()
        yield from held
        return
    with tempfile.TemporaryDirectory(prefix="mloc-shuffle-") as folder:
        buckets = _deal(_drain(held, entries), shift, Path(folder))
        for bucket in buckets:
            yield from _sorted(_read(bucket), shift - _FAN_BITS, memory_bytes)
            bucket.unlink()


def _drain(held: list[_Entry], rest: Iterator[_Entry]) -> Iterator[_Entry]:
    """Gives `held`, then `rest`, and frees `held` on the way."""
    held.reverse()
    while held:
        yield held.pop()
    yield from rest


def _deal(entries: Iterator[_Entry], shift: int, folder: Path) -> list[Path]:
    mask = (1 << _FAN_BITS) - 1
    paths = [folder / f"{number:02d}" for number in range(mask + 1)]
    files = [path.open("wb", buffering=1 << 16) for path in paths]
    try:
        for key, index, data in entries:
            file = files[(key >> shift) & mask]
            file.write(_HEADER.pack(key, index, len(data)))
            file.write(data)
    finally:
        for file in files:
            file.close()
    return paths


def _read(path: Path) -> Iterator[_Entry]:
    with path.open("rb", buffering=1 << 18) as file:
        while header := file.read(_HEADER.size):
            key, index, size = _HEADER.unpack(header)
            yield key, index, file.read(size)
