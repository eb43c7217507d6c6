"""The row cache: answers of earlier tasks by the digest of all that could change them.

One folder per model and engine holds immutable segments (`row_segments`), which appear whole
under names that nobody else uses: any number of writers and readers share them without a lock,
on any store. A cache may lose rows and never gives a wrong one; what it cannot read or write it
does without, and says so once.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterable

import msgspec

from mloc_dagster.results.row_segments import (
    KEY_BYTES,
    DamagedSegmentError,
    SegmentIndex,
    pack_segment,
    read_index,
    read_record,
    read_records,
)
from mloc_dagster.results.rows import OutputRow
from mloc_dagster.results.store import Folder

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
