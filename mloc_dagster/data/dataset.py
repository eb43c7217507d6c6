"""Rows of a `dataset` block: files or a dataset of the hub, then slices, then the shuffle."""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

from mloc_dagster.data.files import FileTable, looks_like_files
from mloc_dagster.data.formats import holds_bytes
from mloc_dagster.data.row_shape import RowBuilder, RowShape
from mloc_dagster.data.shuffle import shuffle_all, shuffle_window
from mloc_dagster.errors import DataError, MissingExtraError, TransientError
from mloc_dagster.net import current_reach, guard_fsspec
from mloc_dagster.results import RowBatch, SourceRow
from mloc_dagster.schema import DatasetData, SplitPart, hub_only, known_names, parse_split

_BATCH_ROWS = 1024


class HubTable:
    """Rows of a hub dataset.

    Args:
        url: The hub id; `datasets` also takes a local folder.
        name: The configuration, where there are several.
        revision: Branch, tag or commit.
        streaming: Read rows off the network as they are needed; otherwise the dataset is
            downloaded into `datasets`' cache and read from there. Offline (`HF_HUB_OFFLINE`)
            it is always read from the cache.
        config_field: How the template calls the configuration, for messages.

    Raises:
        DataError: If the dataset or the configuration does not exist.
        MissingExtraError: If `datasets` is not installed.
        TransientError: If the hub cannot be reached.
    """

    def __init__(
        self,
        url: str,
        name: str | None = None,
        revision: str | None = None,
        *,
        streaming: bool,
        config_field: str = "name",
    ) -> None:
        try:
            import datasets.config
        except ImportError as error:
            raise MissingExtraError(f"the hub dataset {url!r}", "hf") from error
        self._url = url
        streaming = streaming and not datasets.config.HF_HUB_OFFLINE
        with _in_context(url):
            try:
                loaded = _load(url, name, revision, streaming=streaming)
            except ValueError as error:
                raise _config_error(url, name, revision, config_field, error) from error
        self._splits: dict[str, Any] = dict(loaded)

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits."""
        return tuple(str(name) for name in self._splits)

    def count(self, split: str) -> int:
        """Returns how many rows the split has: from the dataset's card, else by reading it."""
        rows = self._splits[split]
        if hasattr(rows, "num_rows"):
            return int(rows.num_rows)
        info = (rows.info.splits or {}).get(split)
        # A builder that has not run writes 0 for "unknown".
        if info is not None and info.num_examples:
            return int(info.num_examples)
        with _in_context(self._url):
            return sum(1 for _ in rows)

    def types(self, split: str) -> Any:
        """Returns the split's Arrow schema; None where `datasets` does not know it."""
        features = self._splits[split].features
        return None if features is None else features.arrow_schema

    def rows(self, split: str, shape: RowShape) -> Iterator[SourceRow]:
        """Yields every row of the split, in order.

        Raises:
            DataError: If a column is missing, or a row cannot be read.
            TransientError: If the hub cannot be reached.
        """
        with _in_context(self._url):
            rows = self._splits[split]
            columns = rows.column_names or list(next(iter(rows), {}))
            if not columns:
                return
            types = self.types(split) or ()
            heavy = [each.name for each in types if holds_bytes(each.type)]
            build = shape.of(columns, f"{self._url} ({split})", types)
            needed = list(build.needed)
            if build.takes_batches and not {*heavy}.intersection(needed) and _is_plain(rows):
                yield from self._of_batches(split, rows.select_columns(needed), build)
                return
            for number, row in enumerate(_undecoded(rows.select_columns(needed), heavy)):
                try:
                    # A hub data set brings its images along: there is nothing to be relative to.
                    yield build(row, str)
                except ValueError as error:
                    raise DataError(f"{self._url} {split} row {number}: {error}") from error

    def _of_batches(self, split: str, rows: Any, build: RowBuilder) -> Iterator[SourceRow]:
        number = 0
        for table in rows.with_format("arrow").iter(_BATCH_ROWS):
            try:
                for row in build.of_batch(RowBatch(table)):
                    yield row
                    number += 1
            except ValueError as error:
                raise DataError(f"{self._url} {split} row {number}: {error}") from error

    def records(
        self, split: str, columns: Sequence[str] | None = None
    ) -> Generator[dict[str, object]]:
        """Yields every row of the split, in order.

        Args:
            split: The split.
            columns: What is needed of a row; by default all of it.

        Raises:
            DataError: If a row cannot be read.
            TransientError: If the hub cannot be reached.
        """
        with _in_context(self._url):
            rows = self._splits[split]
            if columns is not None:
                rows = rows.select_columns(list(columns))
            yield from rows


def _load(url: str, name: str | None, revision: str | None, *, streaming: bool) -> Any:
    """Loads a dataset, whose card may name files and URLs anywhere.

    Raises:
        OutOfReachError: If it names one that the current task may not read.
    """
    import datasets

    guard_fsspec()
    reach = current_reach()
    if not reach.limited:
        return datasets.load_dataset(url, name, revision=revision, streaming=streaming)
    builder = datasets.load_dataset_builder(url, name, revision=revision)
    for files in (builder.config.data_files or {}).values():
        for each in files:
            reach.check_place(str(each))
    if streaming:
        return builder.as_streaming_dataset()
    builder.download_and_prepare()
    return builder.as_dataset()


def _is_plain(rows: Any) -> bool:
    """Tells whether values are what Arrow makes of them: nothing that `datasets` would decode."""
    from datasets.features.features import require_decoding

    features: Any = rows.features
    if features is None or require_decoding(features):
        return False
    return not any("extension" in str(each) for each in features.arrow_schema.types)


def _undecoded(rows: Any, columns: Sequence[str]) -> Any:
    """Returns the rows with images as `{bytes, path}`, the way the data set stores them."""
    from datasets import Image, List

    for name in columns:
        feature = (rows.features or {}).get(name)
        if isinstance(feature, Image):
            rows = rows.cast_column(name, Image(decode=False))
        elif isinstance(feature, List) and isinstance(feature.feature, Image):
            rows = rows.cast_column(name, List(Image(decode=False)))
    return rows


def _config_error(
    url: str, name: str | None, revision: str | None, field: str, error: ValueError
) -> DataError:
    """Explains what `datasets` says of a configuration, with the names there are."""
    import datasets

    names = datasets.get_dataset_config_names(url, revision=revision)
    if name is None and len(names) > 1:
        return DataError(
            f"dataset {url!r} has several configurations; choose one with data.{field}: "
            f"{', '.join(names)}"
        )
    if name is not None and name not in names:
        return DataError(
            f"dataset {url!r} has no configuration {name!r}"
            f"{known_names(name, names, 'configurations')}"
        )
    return DataError(f"dataset {url!r} cannot be read: {error}")


@contextmanager
def _in_context(url: str) -> Iterator[None]:
    """Sorts what `datasets` raises into what the user can mend and what may pass."""
    import httpx
    from datasets.exceptions import DatasetNotFoundError, DatasetsError

    try:
        yield
    except DatasetNotFoundError as error:
        raise DataError(
            f"{url!r} is no file or folder here, nor a dataset of the hub that may be read: {error}"
        ) from error
    except (ConnectionError, TimeoutError, httpx.TransportError) as error:
        raise TransientError(
            f"the hub cannot be reached for dataset {url!r} (which is no file or folder here): "
            f"{error}"
        ) from error
    except (DatasetsError, ValueError) as error:  # pyarrow's errors are ValueErrors
        cause = error.__cause__ or error
        raise DataError(f"dataset {url!r} cannot be read: {cause}") from error


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

    def types(self, split: str) -> Any:
        """Returns the Arrow schema of a split's rows; None where the source has none."""
        ...

    def rows(self, split: str, shape: RowShape) -> Iterator[SourceRow]:
        """Yields what every row becomes, in order."""
        ...

    def records(
        self, split: str, columns: Sequence[str] | None = None
    ) -> Generator[dict[str, object]]:
        """Yields every row of the split, in order, with these columns as far as it has them."""
        ...


class OpenedRows(NamedTuple):
    """The rows that a `data` block means.

    Attributes:
        source: Where they come from, for people.
        rows: A stream, to be read once.
        types: The Arrow types of columns that they bring along, as far as the source knows them.
    """

    source: str
    rows: Iterator[SourceRow]
    types: Mapping[str, Any] = MappingProxyType({})


def dataset_rows(data: DatasetData) -> OpenedRows:
    """Opens the rows that a `dataset` block means.

    What can be checked without reading rows is checked before this returns.

    Raises:
        DataError: If the dataset, the split or the column does not exist.
    """
    parts = parse_split(data.split)
    table = open_table(data)
    shape = RowShape(data)
    rows = sliced(table, parts, data.url, lambda split: table.rows(split, shape))
    first = known_split(parts[0].split, table.splits, data.url)
    types = shape.types(table.types(first), data.url)
    if data.only:
        rows = shape.selection.rows(rows, f"{data.url} {data.split}")
    if data.shuffle and data.buffer_size is not None:
        rows = shuffle_window(rows, data.seed, data.buffer_size)
    elif data.shuffle:
        rows = shuffle_all(rows, data.seed)
    return OpenedRows(describe_dataset(data), rows, types)


def describe_dataset(data: DatasetData) -> str:
    """Returns the rows' origin in words: `questions.jsonl train[:20]`."""
    words = [data.url, *([data.name] if data.name else []), data.split]
    words += [f"({name}: {value})" for name, value in data.only.items()]
    if data.revision:
        words.append(f"at {data.revision}")
    if data.column:
        words.append(f"(column {data.column})")
    if data.prompt or data.messages:
        words.append("(prompts of several columns)")
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
