"""Data files as a table: splits, columns, and a stream of prompts."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import PurePosixPath
from typing import Any, BinaryIO, cast

from mloc_dagster.data.cells import choose_column, to_prompt
from mloc_dagster.data.formats import Cell, Csv, Format, JsonLines, Place, RowError, Text
from mloc_dagster.data.image_cells import cell_images, check_image_columns, with_images
from mloc_dagster.data.json_stream import Json
from mloc_dagster.data.locate import DataFiles, locate
from mloc_dagster.data.parquet_format import Parquet
from mloc_dagster.errors import DataError, TransientError
from mloc_dagster.results.rows import Prompt
from mloc_dagster.schema.data_address import data_suffix

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

    def prompts(
        self, split: str, column: str | None, image_columns: Sequence[str] = ()
    ) -> Iterator[Prompt]:
        """Yields every row of the split, in file order.

        Raises:
            DataError: If a column is missing, or a row cannot be read (the message says where).
        """
        for path in self._files.splits[split]:
            with _in_context(path):
                if image_columns:
                    yield from self._prompts_with_images(path, column, image_columns)
                else:
                    yield from self._prompts_of(path, column)

    def records(
        self, split: str, columns: Sequence[str] | None = None
    ) -> Generator[dict[str, object]]:
        """Yields every row of the split, in file order.

        Args:
            split: The split.
            columns: What is needed of a row, where it has it; by default all of it.

        Raises:
            DataError: If a row cannot be read (the message says where).
        """
        for path in self._files.splits[split]:
            with (
                _in_context(path),
                self._open(path) as file,
                closing(_format_of(path).rows(file, columns)) as rows,
            ):
                yield from rows

    def _prompts_of(self, path: str, column: str | None) -> Iterator[Prompt]:
        columns = self._columns(path)
        if not columns:
            return
        chosen = choose_column(column, columns, PurePosixPath(path).name)
        with ExitStack() as stack:
            for place, cell in self._cells(path, chosen, stack):
                yield cell if type(cell) is str else _prompt_of(chosen, place, cell)

    def _prompts_with_images(
        self, path: str, column: str | None, image_columns: Sequence[str]
    ) -> Iterator[Prompt]:
        columns = self._columns(path)
        if not columns:
            return
        name = PurePosixPath(path).name
        check_image_columns(image_columns, columns, name)
        others = [each for each in columns if each not in image_columns]
        # Only images: the question is the system prompt's.
        chosen = choose_column(column, others, name) if others or column else None
        wanted = [*image_columns, *([chosen] if chosen is not None else [])]
        with ExitStack() as stack:
            # Each column is a stream of its own: a format reads one column at a time.
            streams = [self._cells(path, each, stack) for each in wanted]
            for cells in zip(*streams, strict=True):
                images = [
                    found
                    for each, (place, cell) in zip(image_columns, cells, strict=False)
                    for found in self._images_of(path, each, place, cell)
                ]
                place, cell = cells[-1] if chosen is not None else (cells[0][0], "")
                prompt = _prompt_of(chosen or "", place, cell)
                with _at(chosen or image_columns[0], place):
                    prompt = with_images(prompt, images)
                yield prompt

    def _images_of(self, path: str, column: str, place: Place, cell: object) -> list[str]:
        with _at(column, place):
            return cell_images(cell, lambda text: self._beside(path, text))

    def _beside(self, path: str, relative: str) -> str:
        """Returns the address of a file that is named relative to a data file."""
        fs, address = self._files.fs, f"{path.rpartition('/')[0]}/{relative}"
        return address if "file" in fs.protocol else str(fs.unstrip_protocol(address))

    def _columns(self, path: str) -> list[str]:
        with self._open(path) as file:
            return _format_of(path).columns(file)

    def _cells(self, path: str, column: str, stack: ExitStack) -> Iterator[Cell]:
        file = stack.enter_context(self._open(path))
        return stack.enter_context(closing(_format_of(path).cells(file, column)))

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


def _prompt_of(column: str, place: Place, cell: object) -> Prompt:
    with _at(column, place):
        return to_prompt(cell)


@contextmanager
def _at(column: str, place: Place) -> Iterator[None]:
    """Turns what is wrong with a cell into an error that says where it is."""
    try:
        yield
    except ValueError as error:
        raise RowError(place, f"column {column!r}: {error}") from None


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
