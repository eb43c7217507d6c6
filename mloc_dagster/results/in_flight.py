"""The note of a shard's rows in flight, which outlives a worker that dies with them."""

from __future__ import annotations

import msgspec

from mloc_dagster.planning.shards import Shard
from mloc_dagster.results.store import Folder


class InFlight(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a worker has in hands; written before the engine gets it.

    Attributes:
        rows: Indexes of the rows that may be computed at this moment.
        suspects: Indexes of further rows that a worker had in hands when it died.
        deaths: How many workers died with a row alone in hands, by its index.
        convicted: Digests of the rows that two workers died with.
    """

    rows: list[int] = []
    suspects: list[int] = []
    deaths: dict[int, int] = {}
    convicted: list[str] = []


def read_in_flight(folder: Folder, shard: Shard) -> InFlight | None:
    """Returns the note of an attempt that had no orderly end; None when there is none."""
    try:
        return msgspec.json.decode(folder.read_bytes(_name(shard)), type=InFlight)
    except (FileNotFoundError, msgspec.DecodeError):
        return None  # a note that cannot be read accuses nobody


def write_in_flight(folder: Folder, shard: Shard, note: InFlight) -> None:
    """Replaces the note."""
    folder.write_bytes(_name(shard), msgspec.json.encode(note))


def delete_in_flight(folder: Folder, shard: Shard) -> None:
    """Removes the note: the attempt came to an orderly end."""
    folder.delete(_name(shard))


def _name(shard: Shard) -> str:
    return f"shards/{shard.key}/in-flight.json"
