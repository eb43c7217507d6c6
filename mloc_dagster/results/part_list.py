"""Which part files a task has, and their lines."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NoReturn
from zlib import crc32

import msgspec

from mloc_dagster.errors import DamagedFileError
from mloc_dagster.planning.shards import Shard
from mloc_dagster.results.store import Folder

_PART = re.compile(
    r"shards/(\d{4,})/part-(\d+)-(\d+)-(?:(\d+)-(\d{13})-(\d{13})-)?[0-9a-z-]+?(?:-c([0-9a-f]{8}))?\.jsonl"
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
        crc32: Checksum of its bytes; None when its name does not say.
    """

    shard: int
    first: int
    last: int
    name: str
    attempt: int = 0
    span: tuple[int, int] | None = None
    crc32: int | None = None


def part_name(
    shard: Shard,
    first: int,
    last: int,
    attempt: int,
    unique: str,
    span: tuple[int, int] | None,
    data: bytes,
) -> str:
    """Returns the name of a part file; see `Part`."""
    times = "" if span is None else f"{span[0]:013d}-{span[1]:013d}-"
    where = f"shards/{shard.key}/part-{first:012d}-{last:012d}"
    return f"{where}-{attempt:02d}-{times}{unique}-c{crc32(data):08x}.jsonl"


def list_parts(folder: Folder, shard: Shard | None = None) -> list[Part]:
    """Returns the part files of a task, or of one shard, by shard, first place and name."""
    below = "shards" if shard is None else f"shards/{shard.key}"
    matches = (_PART.fullmatch(name) for name in folder.list(below, recursive=True))
    parts = [_part(match) for match in matches if match]
    return sorted(parts, key=lambda part: (part.shard, part.first, part.name))


def _part(match: re.Match[str]) -> Part:
    span = None if match[4] is None else (int(match[5]), int(match[6]))
    checksum = None if match[7] is None else int(match[7], 16)
    places = int(match[1]), int(match[2]), int(match[3])
    return Part(*places, match[0], int(match[4] or 0), span, checksum)


def read_part(folder: Folder, part: Part) -> bytes:
    """Returns the content of a part file.

    Raises:
        DamagedFileError: If it is not what was written.
    """
    data = folder.read_bytes(part.name)
    if part.crc32 is not None and crc32(data) != part.crc32:
        refuse_damaged(folder, part, "its checksum is another one")
    return data


def decode_part[RowT](
    folder: Folder, part: Part, decoder: msgspec.json.Decoder[RowT]
) -> list[RowT]:
    """Returns the rows of a part file.

    Raises:
        DamagedFileError: If it is not what was written.
    """
    try:
        return decoder.decode_lines(read_part(folder, part))
    except msgspec.DecodeError as error:
        refuse_damaged(folder, part, error)


def refuse_damaged(folder: Folder, part: Part, reason: object) -> NoReturn:
    """Says which part file is damaged, and what helps.

    Raises:
        DamagedFileError: Always.
    """
    raise DamagedFileError(
        f"{folder.url}/{part.name} is damaged ({reason}); resume the task, which computes its "
        "rows again"
    )
