"""Versions as intervals, for engines whose transactions end at one row or one table.

A stored chunk is in every version from `since` on and before `until`. A version exists once its
record does, which is written last: what a build that was killed had marked already is beyond every
version that exists, so that no reader sees it, and the next build takes it back.
"""

from __future__ import annotations

from collections.abc import Iterable, Set as AbstractSet
from dataclasses import dataclass, field

from mloc_dagster.errors import DataError, InputError
from mloc_dagster.index.protocol import IndexVersion

STAGED_S = 86_400.0
"""Seconds that chunks stay which no version has."""


@dataclass(frozen=True, slots=True)
class StoredChunk:
    """A chunk as it is stored.

    Attributes:
        key: Its own, where a chunk is stored more than once.
        id: The chunk's.
        since: The first version that has it; None where none has.
        until: The first version that has it no longer; None where all newer ones have it.
    """

    key: str
    id: str
    since: int | None
    until: int | None


@dataclass(slots=True)
class VersionChanges:
    """What has to be stored for a new version.

    Attributes:
        marks: The new interval of each stored chunk whose interval changes, by its key.
        copies: Keys of chunks that come back after they had left: each is stored once more.
    """

    marks: dict[str, tuple[int | None, int | None]] = field(default_factory=dict)
    copies: list[str] = field(default_factory=list)


def version_changes(
    stored: Iterable[StoredChunk], wanted: AbstractSet[str], newest: int
) -> VersionChanges:
    """Returns what makes the version after the newest one of exactly the chunks that are wanted.

    Raises:
        DataError: If one of them is not stored.
    """
    changes = VersionChanges()
    number = newest + 1
    closed: dict[str, str] = {}
    staged: dict[str, StoredChunk] = {}
    there: set[str] = set()
    for each in stored:
        until = None if each.until is not None and each.until > newest else each.until
        since = None if each.since is not None and each.since > newest else each.since
        if until is not None:
            closed[each.id] = each.key
            continue
        if since is None:
            if each.id in wanted and each.id not in staged:
                staged[each.id] = each
            elif each.since is not None or each.until is not None:
                changes.marks[each.key] = (None, None)
            continue
        there.add(each.id)
        kept = None if each.id in wanted else number
        if each.until != kept:
            changes.marks[each.key] = (since, kept)
    for each in staged.values():
        if each.id not in there:
            changes.marks[each.key] = (number, None)
        elif each.since is not None:
            changes.marks[each.key] = (None, None)
    missing = wanted - there - staged.keys()
    changes.copies = [closed[each] for each in sorted(missing & closed.keys())]
    require_all(missing - closed.keys())
    return changes


def require_all(missing: AbstractSet[str]) -> None:
    """Raises `DataError` if chunks are missing that a version should have."""
    if missing:
        some = ", ".join(sorted(missing)[:3])
        raise DataError(
            f"the index has no vector of {len(missing)} of the chunks to publish ({some}, …): "
            "start the task anew, which embeds them"
        )


def require_version(name: str, versions: Iterable[IndexVersion], number: int) -> IndexVersion:
    """Returns a version of an index by its number.

    Raises:
        DataError: If it is not there, or no longer.
    """
    known = {each.number: each for each in versions}
    if number not in known:
        listed = ", ".join(str(each) for each in sorted(known)) or "none"
        raise DataError(f"the index {name!r} has no version {number}; it has: {listed}")
    return known[number]


def require_same(name: str, is_now: tuple[int, str, str], wanted: tuple[int, str, str]) -> None:
    """Makes sure that an index is what it should be: its dimension, metric and model.

    Raises:
        InputError: If one of them differs; names both.
    """
    for what, there, asked in zip(("dimension", "metric", "model"), is_now, wanted, strict=True):
        if there != asked:
            raise InputError(
                f"the index {name!r} has the {what} {there!r}, not {asked!r}: give it another "
                f"name, or remove it (`mloc index drop {name}`)"
            )
