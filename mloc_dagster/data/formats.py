"""Readers of jsonl, csv, text and Parquet files, and of single cells as prompts.

Each format is a `Format`: the columns, the rows with the place where each was found, and a count
of rows that decodes as little as it can. Memory is bounded by one row except where a docstring says
otherwise.
"""

from __future__ import annotations

import csv
import io
import json
import math
import operator
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from functools import partial
from typing import Any, BinaryIO, NamedTuple, Protocol, cast

import msgspec

from mloc_dagster.errors import DataError, nearest_hint
from mloc_dagster.results import Message, Prompt, RowBatch
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
        messages = msgspec.convert(_in_our_form(cell), list[Message])
    except msgspec.ValidationError as error:
        raise ValueError(f"expected chat messages ({{role, content}} each): {error}") from None
    for place, message in enumerate(messages):
        if message.role not in _ROLES:
            raise ValueError(
                f"message {place} has the role {message.role!r}{nearest_hint(message.role, _ROLES)}"
            )
        if not message.tool_calls and "content" not in cast("list[Any]", cell)[place]:
            raise ValueError(f"message {place} has neither content nor tool_calls")
    return messages


def _in_our_form(messages: list[object]) -> list[object]:
    """Returns messages with calls of tools as OpenAI's API has them.

    Datasets have them without ids, their arguments as an object, and null beside them.
    """
    made: list[object] = []
    number = 0
    for message in messages:
        given = cast("dict[str, Any]", message)
        if isinstance(message, dict) and isinstance(calls := given.get("tool_calls"), list):
            before, number = number, number + len(calls)
            given = {**given, "tool_calls": list(map(_call, calls, range(before, number)))}
            if calls and given.get("content") is None:
                given["content"] = ""
        made.append(given)
    return made


def _call(call: object, number: int) -> object:
    given = cast("dict[str, Any]", call)
    if not isinstance(call, dict) or not isinstance(function := given.get("function"), dict):
        return call
    if isinstance(function.get("arguments"), dict):
        arguments = msgspec.json.encode(function["arguments"], enc_hook=str).decode()
        function = {**function, "arguments": arguments}
    identity = given.get("id")
    return {**given, "id": f"call_{number}" if identity is None else identity, "function": function}


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

Row = dict[str, object]
"""Values by column."""


class PlacedBatch(NamedTuple):
    """Rows that follow each other, as columns.

    Attributes:
        batch: The rows.
        place: Returns where the row stands that is so many after the first.
    """

    batch: RowBatch
    place: Callable[[int], Place]


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

    def types(self, file: BinaryIO) -> Any:
        """Returns the Arrow schema where the format has one; else None."""
        ...

    def rows(
        self, file: BinaryIO, columns: Collection[str] | None = None
    ) -> Generator[tuple[Place, Row]]:
        """Yields each row with its place: all of it, or at least `columns` as far as it has them.

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

    def types(self, file: BinaryIO) -> None:
        """JSON has none that hold for all rows."""

    def rows(
        self, file: BinaryIO, columns: Collection[str] | None = None
    ) -> Generator[tuple[Place, Row]]:
        """Yields each line's object; columns that are not needed are checked, not decoded."""
        yield from _read_lines(_lines(file), 1, _decoder(columns))

    def batch_rows(
        self, file: BinaryIO, columns: Collection[str], required: Collection[str]
    ) -> Generator[PlacedBatch | tuple[Place, Row]]:
        """Yields each line's object, in batches wherever Arrow reads a block of lines.

        Args:
            file: The open file.
            columns: What is needed of a row.
            required: Columns that a row may not lack.

        Raises:
            RowError: If a row cannot be read.
        """
        from mloc_dagster.data.json_batches import JsonBatches  # Arrow is heavy

        read, batches = _decoder(columns), JsonBatches(columns, required)
        before, size = 0, _FIRST_BLOCK_BYTES
        while lines := file.readlines(size):
            if before == 0:
                lines[0] = lines[0].removeprefix(_BOM)
            batch = batches.read(lines)
            if batch is not None:
                yield PlacedBatch(batch, partial(operator.add, before + 1))
            else:
                found: list[Row] = []
                for number, row in _read_lines(lines, before + 1, read):
                    found.append(row)
                    yield number, row
                if batches.learns:
                    batches.learn(found)
            before += len(lines)
            size = _BLOCK_BYTES

    def count(self, file: BinaryIO) -> int:
        """Counts lines that are not blank."""
        return sum(1 for line in _lines(file) if line and not line.isspace())


_BOM = b"\xef\xbb\xbf"
_FIRST_BLOCK_BYTES = 1 << 16  # only read for its types, and by whoever wants a few rows
_BLOCK_BYTES = 1 << 20


def _decoder(columns: Collection[str] | None) -> Callable[[bytes], Row]:
    return msgspec.json.Decoder(Row).decode if columns is None else _these(columns)


def _read_lines(
    lines: Iterable[bytes], start: int, read: Callable[[bytes], Row]
) -> Iterator[tuple[int, Row]]:
    for number, line in enumerate(lines, start):
        try:
            row = read(line)
        except (msgspec.DecodeError, UnicodeDecodeError, KeyError):
            if line.isspace() or not line:
                continue
            row = _json_object(line, number)
        yield number, row


def _these(columns: Collection[str]) -> Callable[[bytes], Row]:
    """Returns what decodes these columns of a line; a line without one is a `KeyError`."""
    decode_row = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
    decode_cell = msgspec.json.Decoder().decode

    def read(line: bytes) -> Row:
        raw = decode_row(line)
        return {name: decode_cell(raw[name]) for name in columns}

    return read


def _lines(file: BinaryIO) -> Iterator[bytes]:
    """Yields the lines of a file; the byte-order mark before the first is none of its text."""
    for first in file:
        yield first.removeprefix(_BOM)
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

    def types(self, file: BinaryIO) -> None:
        """All cells are text."""

    def rows(
        self, file: BinaryIO, columns: Collection[str] | None = None
    ) -> Generator[tuple[Place, Row]]:
        """Yields each record."""
        # Closed here: left to the garbage collector, it would meet a file that is closed already.
        with closing(self._records(file)) as records:
            line, header = next(records, (0, cast("list[str]", [])))
            needed = [*filter(None, header)] if columns is None else columns
            _check_once(header, needed, line)
            places = {name: header.index(name) for name in needed if name in header}
            for line, record in records:
                _check_length(record, header, line)
                yield line, {name: record[place] for name, place in places.items()}

    def batch_rows(
        self, file: BinaryIO, columns: Collection[str], required: Collection[str]
    ) -> Generator[PlacedBatch | tuple[Place, Row]]:
        """Yields records in batches; see `JsonLines.batch_rows`."""
        from pyarrow import Table

        with closing(self._records(file)) as records:
            line, header = next(records, (0, cast("list[str]", [])))
            _check_once(header, columns, line)
            places = [header.index(name) for name in columns]
            while True:
                lines, found, broken = _csv_block(records, header)
                if found:
                    cells = list(zip(*found, strict=True))
                    table = Table.from_arrays(
                        [_texts(cells[place]) for place in places], names=list(columns)
                    )
                    yield PlacedBatch(RowBatch(table), lines.__getitem__)
                if broken is not None:
                    raise broken
                if not found:
                    return

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


def _csv_block(
    records: Iterator[tuple[int, list[str]]], header: Sequence[str]
) -> tuple[list[int], list[list[str]], RowError | None]:
    """Returns the next records with their lines, and what is wrong with the one after them."""
    lines: list[int] = []
    found: list[list[str]] = []
    size = 0
    try:
        for line, record in records:
            _check_length(record, header, line)
            lines.append(line)
            found.append(record)
            size += sum(map(len, record))
            if len(found) >= _BATCH_ROWS or size >= _BLOCK_BYTES:
                break
    except RowError as error:  # the rows before it may be all that are wanted
        return lines, found, error
    return lines, found, None


def _check_length(record: Sequence[str], header: Sequence[str], line: int) -> None:
    if len(record) != len(header):
        raise RowError(line, f"{len(record)} cells where the header has {len(header)}")


def _texts(cells: Sequence[str]) -> Any:
    from pyarrow import array, string

    return array(cells, string())


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

    def types(self, file: BinaryIO) -> None:
        """All is text."""

    def rows(
        self, file: BinaryIO, columns: Collection[str] | None = None
    ) -> Generator[tuple[Place, Row]]:
        """Yields each line without its end."""
        for number, line in enumerate(self._lines(file), start=1):
            try:
                text = line.decode()
            except UnicodeDecodeError as error:
                raise RowError(number, f"not UTF-8 ({error.reason})") from None
            yield number, {"text": text.removesuffix("\n").removesuffix("\r")}

    def count(self, file: BinaryIO) -> int:
        """Counts lines."""
        return sum(1 for _ in self._lines(file))

    @staticmethod
    def _lines(file: BinaryIO) -> Iterator[bytes]:
        # A file of nothing but a byte-order mark has no line.
        return (line for line in _lines(file) if line)


_BATCH_ROWS = 1024
_BYTES_BATCH_ROWS = 16  # a row of such a column may well be an image of some megabytes


def holds_bytes(kind: Any) -> bool:
    """Whether values of an Arrow type may be as large as images."""
    return "binary" in str(kind)


def holds_image(kind: Any) -> bool:
    """Whether values of an Arrow type are images as `datasets` keeps them, or lists of these."""
    from pyarrow import types

    if types.is_list(kind) or types.is_large_list(kind):
        kind = kind.value_type
    return types.is_struct(kind) and {each.name for each in kind} == {"bytes", "path"}


def _row_name(first: int, after: int) -> str:
    return f"row {first + after}"


class Parquet:
    """Apache Parquet, by record batches of the columns that are needed."""

    def columns(self, file: BinaryIO) -> list[str]:
        """Returns the schema's top-level names."""
        return list(self._open(file).schema_arrow.names)

    def types(self, file: BinaryIO) -> Any:
        """Returns the schema."""
        return self._open(file).schema_arrow

    def rows(
        self, file: BinaryIO, columns: Collection[str] | None = None
    ) -> Generator[tuple[Place, Row]]:
        """Yields each row; columns that are not needed are not read."""
        number = 1
        for batch in self._batches(file, columns):
            for row in batch.to_pylist():
                yield f"row {number}", row
                number += 1

    def batch_rows(
        self, file: BinaryIO, columns: Collection[str], required: Collection[str]
    ) -> Generator[PlacedBatch | tuple[Place, Row]]:
        """Yields Arrow's own batches; see `JsonLines.batch_rows`."""
        from pyarrow import Table

        number = 1
        for batch in self._batches(file, columns):
            yield PlacedBatch(RowBatch(Table.from_batches([batch])), partial(_row_name, number))
            number += batch.num_rows

    def _batches(self, file: BinaryIO, columns: Collection[str] | None) -> Iterator[Any]:
        opened = self._open(file)
        schema = opened.schema_arrow
        wanted = [each for each in schema.names if columns is None or each in columns]
        heavy = any(holds_bytes(schema.field(each).type) for each in wanted)
        rows = _BYTES_BATCH_ROWS if heavy else _BATCH_ROWS
        return opened.iter_batches(batch_size=rows, columns=wanted)

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
