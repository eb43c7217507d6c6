"""Readers of jsonl, csv, text and Parquet files, and of single cells as prompts.

Each format is a `Format`: the columns, the cells of one column with the place where each was
found, and a count of rows that decodes as little as it can. Memory is bounded by one row
except where a docstring says otherwise.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Collection, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from typing import BinaryIO, Protocol, cast

import msgspec

from mloc_dagster.errors import DataError, nearest_hint
from mloc_dagster.results import Message, Prompt
from mloc_dagster.schema import PROMPT_COLUMNS, known_names

_ROLES = frozenset(("system", "user", "assistant", "tool"))


def to_prompt(cell: object) -> Prompt:
    """Turns a cell into a prompt.

    Strings pass; null, and NaN as data frames write it, become the empty string, so that no row
    disappears; numbers and booleans are written as JSON writes them; a list must be chat messages.

    Raises:
        ValueError: If the cell is anything else.
    """
    match cell:
        case str():
            return cell
        case None:
            return ""
        case float() if math.isnan(cell):
            return ""
        case float() if math.isinf(cell):
            raise ValueError(f"expected text, got {cell}")
        case bool():
            return "true" if cell else "false"
        case int() | float():
            return str(cell)
        case list():
            return _to_messages(cell)
        case _:
            raise ValueError(f"expected text or chat messages, got {_describe(cell)}")


def _to_messages(cell: list[object]) -> list[Message]:
    if not cell:
        raise ValueError("expected chat messages, got an empty list")
    try:
        messages = msgspec.convert(cell, list[Message])
    except msgspec.ValidationError as error:
        raise ValueError(f"expected chat messages ({{role, content}} each): {error}") from None
    for place, message in enumerate(messages):
        if message.role not in _ROLES:
            raise ValueError(
                f"message {place} has the role {message.role!r}{nearest_hint(message.role, _ROLES)}"
            )
    return messages


def _describe(cell: object) -> str:
    text = repr(cell)
    return f"{type(cell).__name__} {text if len(text) <= 60 else text[:59] + '…'}"


def choose_column(wanted: str | None, columns: Sequence[str], where: str) -> str:
    """Returns the column of prompts.

    Args:
        wanted: The column that the template names, if it does.
        columns: What there is.
        where: The file or dataset, for the message.

    Raises:
        DataError: If the column is missing, or none was named and the choice is not obvious.
    """
    if wanted is not None:
        if wanted in columns:
            return wanted
        hint = known_names(wanted, columns, "columns")
        raise DataError(f"{where} has no column {wanted!r}{hint}", "column")
    if len(columns) == 1:
        return columns[0]
    usual = [name for name in PROMPT_COLUMNS if name in columns]
    if len(usual) == 1:
        return usual[0]
    raise DataError(
        f"{where} has {len(columns)} columns; say which holds the prompts with data.column: "
        f"{', '.join(columns)}"
    )


_MAX_CSV_CELL_BYTES = 1 << 28

Place = int | str
"""A line's number; `row 12` where there are no lines."""

Cell = tuple[Place, object]
"""Where it was found, and the value."""

Row = dict[str, object]
"""Values by column."""


class RowError(Exception):
    """A file, or a row of it, that cannot be read.

    Args:
        place: The line or row; "" for the file as a whole.
        message: What is wrong.
    """

    def __init__(self, place: Place, message: str) -> None:
        self.place = place
        super().__init__(message)


class Format(Protocol):
    """One way to read rows out of an open binary file."""

    def columns(self, file: BinaryIO) -> list[str]:
        """Returns the column names; empty when the file has no rows."""
        ...

    def cells(self, file: BinaryIO, column: str) -> Generator[Cell]:
        """Yields one cell a row.

        Raises:
            RowError: If a row cannot be read.
        """
        ...

    def rows(self, file: BinaryIO, columns: Collection[str] | None = None) -> Generator[Row]:
        """Yields each row with `columns`, or all of them, as far as the row has them.

        Raises:
            RowError: If a row cannot be read.
        """
        ...

    def count(self, file: BinaryIO) -> int:
        """Returns how many rows there are."""
        ...


class JsonLines:
    """One JSON object a line. Blank lines are not rows."""

    def columns(self, file: BinaryIO) -> list[str]:
        """Returns the keys of the first row."""
        for number, line in enumerate(_lines(file), start=1):
            if line := line.strip():
                return list(_json_object(line, number))
        return []

    def cells(self, file: BinaryIO, column: str) -> Generator[Cell]:
        """Yields `column` of each line; other columns are checked for syntax, not decoded."""
        decode_row = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
        decode_cell = msgspec.json.Decoder().decode
        for number, line in enumerate(_lines(file), start=1):
            try:
                cell = decode_cell(decode_row(line)[column])
            except (msgspec.DecodeError, UnicodeDecodeError, KeyError):
                if line.isspace() or not line:
                    continue
                cell = json_cell(_json_object(line, number), column, number)
            yield number, cell

    def rows(self, file: BinaryIO, columns: Collection[str] | None = None) -> Generator[Row]:
        """Yields each line's object."""
        decode = msgspec.json.Decoder(Row).decode
        for number, line in enumerate(_lines(file), start=1):
            if line := line.strip():
                try:
                    row = decode(line)
                except (msgspec.DecodeError, UnicodeDecodeError):
                    row = _json_object(line, number)
                yield only(row, columns)

    def count(self, file: BinaryIO) -> int:
        """Counts lines that are not blank."""
        return sum(1 for line in _lines(file) if line and not line.isspace())


def only(row: Row, columns: Collection[str] | None) -> Row:
    """Returns a row with these columns, or whole."""
    if columns is None:
        return row
    return {name: row[name] for name in columns if name in row}


def json_cell(row: dict[str, object], column: str, place: Place) -> object:
    """Returns one column of a JSON object."""
    if column not in row:
        raise RowError(place, f"no column {column!r}; this row has: {', '.join(row)}")
    return row[column]


def _lines(file: BinaryIO) -> Iterator[bytes]:
    """Yields the lines of a file; the byte-order mark before the first is none of its text."""
    for first in file:
        yield first.removeprefix(b"\xef\xbb\xbf")
        break
    yield from file


def _json_object(line: bytes, number: int) -> dict[str, object]:
    try:
        # Unlike msgspec, the standard library reads NaN, which data frames write for "missing".
        row = json.loads(line.decode())
    except UnicodeDecodeError as error:
        raise RowError(number, f"not UTF-8 ({error.reason})") from None
    except json.JSONDecodeError as error:
        raise RowError(number, f"broken JSON: {error.msg}") from None
    if not isinstance(row, dict):
        raise RowError(number, f"expected a JSON object, got {type(row).__name__}")
    return cast("dict[str, object]", row)


class Csv:
    """A header line, then one record a row; quoted cells may span lines.

    Args:
        delimiter: What stands between cells.
    """

    def __init__(self, delimiter: str = ",") -> None:
        self._delimiter = delimiter

    def columns(self, file: BinaryIO) -> list[str]:
        """Returns the header."""
        return next(self._records(file), (0, []))[1]

    def cells(self, file: BinaryIO, column: str) -> Generator[Cell]:
        """Yields `column` of each record."""
        # Closed here: left to the garbage collector, it would meet a file that is closed already.
        with closing(self._records(file)) as records:
            line, header = next(records)
            _check_once(header, [column], line)
            place = header.index(column)
            for line, record in records:
                if len(record) != len(header):
                    raise RowError(line, f"{len(record)} cells where the header has {len(header)}")
                yield line, record[place]

    def rows(self, file: BinaryIO, columns: Collection[str] | None = None) -> Generator[Row]:
        """Yields each record."""
        with closing(self._records(file)) as records:
            line, header = next(records, (0, cast("list[str]", [])))
            _check_once(header, filter(None, header) if columns is None else columns, line)
            for line, record in records:
                if len(record) != len(header):
                    raise RowError(line, f"{len(record)} cells where the header has {len(header)}")
                yield only(dict(zip(header, record, strict=True)), columns)

    def count(self, file: BinaryIO) -> int:
        """Counts records."""
        return max(sum(1 for _ in self._records(file)) - 1, 0)

    def _records(self, file: BinaryIO) -> Generator[tuple[int, list[str]]]:
        # The limit is the process's own: 128 KiB by default, which a long document exceeds.
        csv.field_size_limit(max(csv.field_size_limit(), _MAX_CSV_CELL_BYTES))
        text = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
        reader = csv.reader(text, delimiter=self._delimiter, strict=True)
        try:
            yield from ((reader.line_num, record) for record in reader if record)
        except csv.Error as error:
            raise RowError(reader.line_num, f"broken CSV: {error}") from None
        except UnicodeDecodeError as error:
            raise RowError(reader.line_num + 1, f"not UTF-8 ({error.reason})") from None
        finally:
            text.detach()


def _check_once(header: Sequence[str], needed: Iterable[str], line: int) -> None:
    for name in needed:
        if header.count(name) > 1:
            raise RowError(
                line, f"{header.count(name)} columns are called {name!r}: give each its own name"
            )


class Text:
    """One row a line, in the one column `text`. Empty lines are rows too."""

    def columns(self, file: BinaryIO) -> list[str]:
        """Returns the one column."""
        return ["text"]

    def cells(self, file: BinaryIO, column: str) -> Generator[Cell]:
        """Yields each line without its end."""
        for number, line in enumerate(self._lines(file), start=1):
            try:
                text = line.decode()
            except UnicodeDecodeError as error:
                raise RowError(number, f"not UTF-8 ({error.reason})") from None
            yield number, text.removesuffix("\n").removesuffix("\r")

    def rows(self, file: BinaryIO, columns: Collection[str] | None = None) -> Generator[Row]:
        """Yields each line."""
        for _, text in self.cells(file, "text"):
            yield only({"text": text}, columns)

    def count(self, file: BinaryIO) -> int:
        """Counts lines."""
        return sum(1 for _ in self._lines(file))

    @staticmethod
    def _lines(file: BinaryIO) -> Iterator[bytes]:
        # A file of nothing but a byte-order mark has no line.
        return (line for line in _lines(file) if line)


_BATCH_ROWS = 1024
_BYTES_BATCH_ROWS = 16  # a row of such a column may well be an image of some megabytes


class Parquet:
    """Apache Parquet, by record batches of the one column that is needed."""

    def columns(self, file: BinaryIO) -> list[str]:
        """Returns the schema's top-level names."""
        return list(self._open(file).schema_arrow.names)

    def cells(self, file: BinaryIO, column: str) -> Generator[Cell]:
        """Yields `column` of each row."""
        number = 1
        opened = self._open(file)
        holds_bytes = "binary" in str(opened.schema_arrow.field(column).type)
        rows = _BYTES_BATCH_ROWS if holds_bytes else _BATCH_ROWS
        for batch in opened.iter_batches(batch_size=rows, columns=[column]):
            for cell in batch.column(0).to_pylist():
                yield f"row {number}", cell
                number += 1

    def rows(self, file: BinaryIO, columns: Collection[str] | None = None) -> Generator[Row]:
        """Yields each row; columns that are not needed are not read."""
        opened = self._open(file)
        names = opened.schema_arrow.names
        wanted = names if columns is None else [name for name in names if name in columns]
        for batch in opened.iter_batches(batch_size=_BATCH_ROWS, columns=wanted):
            yield from batch.to_pylist()

    def count(self, file: BinaryIO) -> int:
        """Reads the footer."""
        return int(self._open(file).metadata.num_rows)

    def _open(self, file: BinaryIO):
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile

        try:
            return ParquetFile(file)
        except ArrowException as error:
            raise RowError("", f"not a Parquet file: {error}") from None
