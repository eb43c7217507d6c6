"""Rows of a `dataset` block: files or the hub, then slices, then the shuffle."""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Protocol

from mloc_dagster.data.files import FileTable
from mloc_dagster.data.locate import looks_like_files
from mloc_dagster.data.shuffle import shuffle_all, shuffle_window
from mloc_dagster.errors import DataError
from mloc_dagster.results.rows import Prompt
from mloc_dagster.schema.data import DatasetData
from mloc_dagster.schema.data_address import hub_only
from mloc_dagster.schema.hints import known_names
from mloc_dagster.schema.split import SplitPart, parse_split

_HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")


class Table(Protocol):
    """Named splits of rows."""

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits."""
        ...

    def count(self, split: str) -> int:
        """Returns how many rows the split has."""
        ...

    def prompts(
        self, split: str, column: str | None, image_columns: Sequence[str] = ()
    ) -> Iterator[Prompt]:
        """Yields the prompt of every row, in order, with its images before its text."""
        ...

    def records(
        self, split: str, columns: Sequence[str] | None = None
    ) -> Generator[dict[str, object]]:
        """Yields every row of the split, in order, with these columns as far as it has them."""
        ...


def dataset_rows(data: DatasetData) -> Iterator[Prompt]:
    """Streams the rows that a `dataset` block means.

    What can be checked without reading rows is checked before this returns.

    Raises:
        DataError: If the dataset, the split or the column does not exist.
    """
    parts = parse_split(data.split)
    table = open_table(data)

    def prompts(split: str) -> Iterator[Prompt]:
        return table.prompts(split, data.column, data.image_columns)

    rows = sliced(table, parts, data.url, prompts)
    if not data.shuffle:
        return rows
    if data.buffer_size is not None:
        return shuffle_window(rows, data.seed, data.buffer_size)
    return shuffle_all(rows, data.seed)


def describe_dataset(data: DatasetData) -> str:
    """Returns the rows' origin in words: `questions.jsonl train[:20]`."""
    words = [data.url, *([data.name] if data.name else []), data.split]
    if data.revision:
        words.append(f"at {data.revision}")
    if data.column:
        words.append(f"(column {data.column})")
    if data.image_columns:
        words.append(f"(images in {', '.join(data.image_columns)})")
    if data.shuffle:
        within = f" within {data.buffer_size}" if data.buffer_size is not None else ""
        words.append(f"shuffled{within}, seed {data.seed}")
    return " ".join(words)


def open_table(data: DatasetData, names: tuple[str, str] = ("url", "name")) -> Table:
    """Opens files or a hub dataset, whichever the URL means.

    Args:
        data: What to open.
        names: How the template calls the URL and the configuration, for messages.

    Raises:
        DataError: If it is neither.
    """
    if looks_like_files(data.url):
        for field, value in ((names[1], data.name), ("revision", data.revision)):
            if value is not None:
                raise DataError(hub_only(f"data.{field}", f"data.{names[0]}", data.url), field)
        return FileTable(data.url)
    check_hub_id(data.url, names[0])
    from mloc_dagster.data.hub import HubTable

    whole_shuffle = data.shuffle and data.buffer_size is None
    return HubTable(
        data.url, data.name, data.revision, streaming=not whole_shuffle, config_field=names[1]
    )


def check_hub_id(url: str, field: str) -> None:
    """Makes sure that what names no files can be a dataset of the hub.

    Args:
        url: The address.
        field: How the template calls it.

    Raises:
        DataError: If it cannot.
    """
    if _HUB_ID.fullmatch(url) is None:
        raise DataError(
            f"data.{field} {url!r} is neither a file or folder that exists (looked in "
            f"{Path.cwd()}) nor a hub id of the form owner/name",
            field,
        )


def sliced[RowT](
    table: Table,
    parts: tuple[SplitPart, ...],
    where: str,
    rows_of: Callable[[str], Iterator[RowT]],
) -> Iterator[RowT]:
    """Returns the rows of one slice after the other.

    Args:
        table: What is sliced.
        parts: The slices.
        where: The file or dataset, for the message.
        rows_of: Reads a split from its start.

    Raises:
        DataError: If a split does not exist.
    """
    named = [(known_split(part.split, table.splits, where), part) for part in parts]

    def rows() -> Iterator[RowT]:
        for split, part in named:
            if part.needs_total:
                wanted = part.resolve(table.count(split))
                start, stop = wanted.start, wanted.stop
            else:
                start, stop = part.start or 0, part.stop
            if stop is None or start < stop:
                yield from islice(rows_of(split), start, stop)

    return rows()


def known_split(wanted: str | None, splits: tuple[str, ...], where: str) -> str:
    """Returns a split's name, or the usual one where none is wanted.

    Raises:
        DataError: If there is no such split.
    """
    if wanted is None:
        return "train" if "train" in splits or not splits else splits[0]
    if wanted in splits:
        return wanted
    hint = known_names(wanted, splits, "splits")
    raise DataError(f"{where} has no split {wanted!r}{hint}", "split")
