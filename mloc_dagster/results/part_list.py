"""Which part files a task has, and their lines."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NoReturn

import msgspec

from mloc_dagster.errors import IncompleteResultsError
from mloc_dagster.planning.shards import Shard
from mloc_dagster.results.store import Folder

_PART = re.compile(
    r"shards/(\d{4,})/part-(\d+)-(\d+)-(?:(\d+)-(\d{13})-(\d{13})-)?[0-9a-z-]+\.jsonl"
)


@dataclass(frozen=True, slots=True)
class Part:
    """A part file, as its name describes it.

    Attributes:
        shard: Index of its shard.
        first: Place of its first row.
        last: Place of its last row.
        name: Its name below the task's folder.
        attempt: The shard's attempt that wrote it; 0 when its name does not say.
        span: When the attempt that wrote it began, and when it was written; in milliseconds since
            1970. None when its name does not say.
    """

    shard: int
    first: int
    last: int
    name: str
    attempt: int = 0
    span: tuple[int, int] | None = None


def part_name(
    shard: Shard, first: int, last: int, attempt: int, unique: str, span: tuple[int, int] | None
) -> str:
    """Returns the name of a part file; see `Part`."""
    times = "" if span is None else f"{span[0]:013d}-{span[1]:013d}-"
    return f"shards/{shard.key}/part-{first:012d}-{last:012d}-{attempt:02d}-{times}{unique}.jsonl"


def list_parts(folder: Folder, shard: Shard | None = None) -> list[Part]:
    """Returns the part files of a task, or of one shard, by shard, first place and name."""
    below = "shards" if shard is None else f"shards/{shard.key}"
    matches = (_PART.fullmatch(name) for name in folder.list(below, recursive=True))
    parts = [_part(match) for match in matches if match]
    return sorted(parts, key=lambda part: (part.shard, part.first, part.name))


def _part(match: re.Match[str]) -> Part:
    span = None if match[4] is None else (int(match[5]), int(match[6]))
    return Part(int(match[1]), int(match[2]), int(match[3]), match[0], int(match[4] or 0), span)


def decode_part[RowT](
    folder: Folder, part: Part, decoder: msgspec.json.Decoder[RowT]
) -> list[RowT]:
    """Returns the rows of a part file.

    Raises:
        IncompleteResultsError: If it is damaged.
    """
    try:
        return decoder.decode_lines(folder.read_bytes(part.name))
    except msgspec.DecodeError as error:
        refuse_damaged(folder, part, error)


def refuse_damaged(folder: Folder, part: Part, error: Exception) -> NoReturn:
    """Says which part file is damaged, and what helps.

    Raises:
        IncompleteResultsError: Always.
    """
    raise IncompleteResultsError(
        f"{folder.url}/{part.name} is damaged ({error}); delete that file and resume the task"
    ) from error
