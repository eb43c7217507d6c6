"""Rows of a result in a file of the caller's."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import msgspec

from mloc_dagster.errors import DataError, InputError

_FORMATS = (".parquet", ".jsonl", ".csv")


def write_tables(tables: Iterable[Any], target: Path) -> Path:
    """Writes tables of one schema, one after the other; the file appears whole or not at all.

    Raises:
        InputError: If the name's ending is that of no format.
        DataError: If the file cannot be written.
    """
    if target.suffix not in _FORMATS:
        raise InputError(f"{target}: a name ends with {', '.join(_FORMATS)}, which says the format")
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = target.with_name(f".{target.name}.{uuid4().hex}")
    try:
        with _writer(target.suffix, beside) as write:
            for table in tables:
                write(table)
        beside.replace(target)
    except OSError as error:
        raise DataError(f"cannot write {target}: {error.strerror or error}") from error
    finally:
        beside.unlink(missing_ok=True)
    return target


@contextmanager
def _writer(suffix: str, path: Path) -> Iterator[Any]:
    if suffix == ".jsonl":
        encoder = msgspec.json.Encoder(enc_hook=str)
        with path.open("wb") as file:
            yield lambda table: file.write(encoder.encode_lines(table.to_pylist()))
        return
    with path.open("wb") as file:
        opened = _Arrow(suffix, file)
        yield opened.write
        opened.close()


class _Arrow:
    """A writer of Arrow's that is opened with the first table's schema."""

    def __init__(self, suffix: str, file: Any) -> None:
        self._suffix = suffix
        self._file = file
        self._writer: Any = None

    def write(self, table: Any) -> None:
        """Writes a table."""
        if self._suffix == ".csv":
            table = _flat(table)
        if self._writer is None:
            self._writer = self._open(table.schema)
        self._writer.write_table(table)

    def close(self) -> None:
        """Ends the file."""
        if self._writer is not None:
            self._writer.close()

    def _open(self, schema: Any) -> Any:
        if self._suffix == ".csv":
            import pyarrow.csv as arrow_csv  # pyright: ignore[reportMissingTypeStubs]

            csv: Any = arrow_csv
            return csv.CSVWriter(self._file, schema)
        import pyarrow.parquet as pq  # pyright: ignore[reportMissingTypeStubs]

        parquet: Any = pq
        return parquet.ParquetWriter(self._file, schema, compression="zstd")


def _flat(table: Any) -> Any:
    """Returns a table whose lists and structs are JSON: CSV has cells of text only."""
    import pyarrow as pa  # pyright: ignore[reportMissingTypeStubs]

    arrow: Any = pa
    encode = msgspec.json.Encoder(enc_hook=str).encode
    for place, field in enumerate(table.schema):
        if arrow.types.is_nested(field.type):
            cells = [
                None if each is None else encode(each).decode()
                for each in table.column(place).to_pylist()
            ]
            table = table.set_column(place, field.name, arrow.array(cells, arrow.string()))
    return table
