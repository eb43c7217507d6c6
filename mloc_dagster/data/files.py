"""Data files as a table: splits, columns, and a stream of prompts."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import PurePosixPath
from typing import Any, BinaryIO, cast

from mloc_dagster.data.cells import choose_column, to_prompt
from mloc_dagster.data.formats import Csv, Format, JsonLines, Parquet, RowError, Text
from mloc_dagster.data.json_stream import Json
from mloc_dagster.data.locate import DataFiles, data_suffix, locate
from mloc_dagster.errors import DataError, TransientError
from mloc_dagster.results.rows import Prompt

_FORMATS: dict[str, Format] = {
    ".jsonl": JsonLines(),
    ".ndjson": JsonLines(),
    ".json": Json(),
    ".csv": Csv(),
    ".tsv": Csv(delimiter="\t"),
    ".parquet": Parquet(),
    ".txt": Text(),
}
_BUFFER_BYTES = 1 << 20


class FileTable:
    """Rows of jsonl, json, csv, tsv, parquet or text files.

    Args:
        url: A path, a glob, a folder, or any fsspec URL of these.

    Raises:
        DataError: If there are no such files.
    """

    def __init__(self, url: str) -> None:
        self._files: DataFiles = locate(url)

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits."""
        return tuple(self._files.splits)

    def count(self, split: str) -> int:
        """Returns how many rows the split has: Parquet's footers, else a pass over the files."""
        total = 0
        for path in self._files.splits[split]:
            with _in_context(path), self._open(path) as file:
                total += _format_of(path).count(file)
        return total

    def prompts(self, split: str, column: str | None) -> Iterator[Prompt]:
        """Yields every row of the split, in file order.

        Raises:
            DataError: If the column is missing, or a row cannot be read (the message says where).
        """
        for path in self._files.splits[split]:
            with _in_context(path):
                yield from self._prompts_of(path, column)

    def _prompts_of(self, path: str, column: str | None) -> Iterator[Prompt]:
        form = _format_of(path)
        with self._open(path) as file:
            columns = form.columns(file)
        if not columns:
            return
        chosen = choose_column(column, columns, PurePosixPath(path).name)
        with self._open(path) as file, closing(form.cells(file, chosen)) as cells:
            for place, cell in cells:
                if type(cell) is str:
                    yield cell
                    continue
                try:
                    prompt = to_prompt(cell)
                except ValueError as error:
                    raise RowError(place, f"column {chosen!r}: {error}") from None
                yield prompt

    @contextmanager
    def _open(self, path: str) -> Iterator[BinaryIO]:
        with self._files.fs.open(path, "rb") as raw:
            match PurePosixPath(path.lower()).suffix:
                case ".gz":
                    stream = io.BufferedReader(cast(Any, gzip.GzipFile(fileobj=raw)), _BUFFER_BYTES)
                case ".zst":
                    from pyarrow import CompressedInputStream

                    stream = io.BufferedReader(CompressedInputStream(raw, "zstd"), _BUFFER_BYTES)
                case _:
                    stream = io.BufferedReader(raw, _BUFFER_BYTES)
            yield cast(BinaryIO, stream)


@contextmanager
def _in_context(path: str) -> Iterator[None]:
    """Turns what a reader found into an error that names the file."""
    try:
        yield
    except RowError as error:
        place = f"{path}:{error.place}" if error.place else path
        raise DataError(f"{place}: {error}") from error
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path}: broken compression: {error}") from error
    except OSError as error:
        raise TransientError(f"{path}: cannot be read: {error}") from error


def _format_of(path: str) -> Format:
    return _FORMATS[data_suffix(path) or ".txt"]
