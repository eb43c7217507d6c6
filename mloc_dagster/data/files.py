"""Data files on any fsspec URL: found by name, glob or folder, and read as one table."""

from __future__ import annotations

import gzip
import io
import re
import zlib
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, cast

import fsspec
from fsspec.implementations.local import LocalFileSystem

from mloc_dagster.data.formats import (
    Csv,
    Format,
    JsonLines,
    Parquet,
    Place,
    PlacedBatch,
    Row,
    RowError,
    Text,
)
from mloc_dagster.data.json_stream import Json
from mloc_dagster.data.row_shape import RowBuilder, RowShape
from mloc_dagster.errors import (
    NOT_A_FILE,
    DataError,
    MissingExtraError,
    MlocError,
    TransientError,
    nearest_hint,
)
from mloc_dagster.net import RefusedAddressError, check_upload, current_reach, file_system
from mloc_dagster.results import SourceRow
from mloc_dagster.schema import (
    COMPRESSIONS,
    SUFFIXES,
    data_suffix,
    document_type,
    is_glob,
    names_files,
)

_WORD = re.compile(r"[^a-z]+")
_SPLIT_WORDS = {
    "train": "train",
    "training": "train",
    "test": "test",
    "testing": "test",
    "eval": "test",
    "evaluation": "test",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
}
_EXTRAS = {"s3": "s3", "s3a": "s3", "hf": "hf"}


@dataclass(frozen=True, slots=True)
class DataFiles:
    """The files of a dataset.

    Attributes:
        fs: The fsspec file system they lie on.
        splits: Paths by split name, in reading order.
        url: As the user wrote it.
    """

    fs: Any
    splits: dict[str, tuple[str, ...]]
    url: str


def looks_like_files(url: str) -> bool:
    """Whether `url` means files; otherwise it can only be a hub id."""
    try:
        return names_files(url) or Path(url).exists()
    except OSError:  # too long for a path
        return False


def is_local(url: str) -> bool:
    """Whether an address of files means those of this machine."""
    protocol, separator, _ = url.partition("://")
    return not separator or (protocol in ("file", "local") and "::" not in url)


def locate(url: str) -> DataFiles:
    """Finds the files that `url` means.

    One file, or a glob, is the split `train`. In a folder (searched deeply) files are divided by
    the split that their names tell (`train.jsonl`, `data-validation.csv`, `test/0.parquet`);
    where no name tells one, all are `train`.

    Raises:
        DataError: If nothing is there, or the format is none that mloc reads.
        MissingExtraError: If the URL's file system is not installed.
        TransientError: If the file system cannot be reached.
    """
    fs, path = open_file_system(url)
    with reading(url):
        splits = _find_splits(fs, path, url)
    check_files(fs, (each for paths in splits.values() for each in paths))
    return DataFiles(fs=fs, splits=splits, url=url)


@contextmanager
def reading(url: str) -> Iterator[None]:
    """Sorts what file systems raise into what the user can mend and what may pass.

    Args:
        url: As the user wrote it.
    """
    try:
        yield
    except RefusedAddressError as error:
        raise DataError(f"{url}: {error}") from error
    except MlocError:
        raise
    except Exception as error:  # each file system raises what its own library raises
        if isinstance(error, PermissionError) or "Credentials" in type(error).__name__:
            raise DataError(f"{url}: may not be read: {error}") from error
        raise TransientError(f"{url}: cannot be reached: {error}") from error


def check_files(fs: Any, paths: Iterable[str]) -> None:
    """Makes sure that files may be read, and that those of a submission are what was sent.

    Raises:
        InputError: If not.
    """
    for found in paths:
        if isinstance(fs, LocalFileSystem):
            current_reach().check_path(found)  # a folder's links may lead out of it
        check_upload(fs, found)


def _find_splits(fs: Any, path: str, url: str) -> dict[str, tuple[str, ...]]:
    splits: dict[str, tuple[str, ...]] = {}
    if is_glob(path) and not fs.exists(path):
        files = [found for found in fs.glob(path) if data_suffix(found) and not fs.isdir(found)]
        splits = {"train": tuple(sorted(files))}
    elif fs.isdir(path):
        splits = _by_split(path, (found for found in fs.find(path) if data_suffix(found)), url)
    elif fs.isfile(path):
        if data_suffix(path) is None:
            raise DataError(f"{url}: unknown format; mloc reads {_formats()}")
        splits = {"train": (path,)}
    if not any(splits.values()):
        refuse_pipes(fs, (path,), url)
        raise DataError(_nothing(fs, path, url))
    for paths in splits.values():
        refuse_pipes(fs, paths, url)
    return splits


def refuse_pipes(fs: Any, paths: Iterable[str], url: str) -> None:
    """Refuses pipes, sockets and devices: reading one may never end, and gives its rows once.

    Args:
        fs: Where the paths are; anything else than this machine's files has none of these.
        paths: What is going to be read.
        url: As the user wrote it.

    Raises:
        DataError: If one of the paths is there and is neither a file nor a folder.
    """
    for path in paths if "file" in fs.protocol else ():
        found = Path(path)
        if found.exists() and not (found.is_file() or found.is_dir()):
            named = url if Path(url).name == found.name else f"{url}: {path}"
            raise DataError(f"{named}: {NOT_A_FILE}")


def open_file_system(url: str) -> tuple[Any, str]:
    """Returns the file system of a path or URL, and the path in it.

    Raises:
        DataError: If there is no such file system.
        MissingExtraError: If it is not installed.
    """
    try:
        return file_system(str(Path(url).expanduser()) if url.startswith("~") else url)
    except ImportError as error:
        protocol = url.partition("://")[0]
        if protocol in _EXTRAS:
            raise MissingExtraError(f"data.url {url}", _EXTRAS[protocol]) from error
        raise DataError(f"{url}: {error}") from error
    except ValueError as error:
        protocols = fsspec.available_protocols()
        hint = nearest_hint(url.partition("://")[0], protocols)
        raise DataError(f"{url}: {error}{hint}") from error


def _by_split(folder: str, found: Iterable[str], url: str) -> dict[str, tuple[str, ...]]:
    splits: dict[str | None, list[str]] = {}
    for path in sorted(found):
        inside = path[len(folder) :].lstrip("/")
        if not any(part.startswith((".", "_")) for part in inside.split("/")):
            splits.setdefault(_split_of(inside), []).append(path)
    nameless = splits.pop(None, [])
    named = {name: tuple(paths) for name, paths in splits.items() if name is not None}
    if nameless and named:
        raise DataError(
            f"{url}: some files are named by split ({', '.join(sorted(named))}) and "
            f"{PurePosixPath(nameless[0]).name!r} is not; rename it or name the files by a glob"
        )
    return named or {"train": tuple(nameless)}


def _split_of(inside: str) -> str | None:
    for part in reversed(inside.lower().split("/")):
        for word in _WORD.split(part):
            if word in _SPLIT_WORDS:
                return _SPLIT_WORDS[word]
    return None


def _nothing(fs: Any, path: str, url: str) -> str:
    """Says what lies where the user looked."""
    if fs.isdir(path) or is_glob(path):
        return f"{url}: no data files there; mloc reads {_formats()}"
    folder, _, name = path.rpartition("/")
    shown_folder = url.rpartition("/")[0] or "."
    if not fs.isdir(folder):
        text = f"{url}: no such file; the folder {shown_folder} does not exist either"
    else:
        names = [PurePosixPath(found).name for found in fs.ls(folder, detail=False)]
        reads = document_type if document_type(name) else data_suffix
        near = [found for found in names if reads(found)] or names
        text = f"{url}: no such file in {shown_folder}{nearest_hint(name, near)}"
    if "://" not in url and re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", url):
        text += "; as a hub id it would have no file suffix"
    return text


def _formats() -> str:
    return f"{', '.join(SUFFIXES)} (each also with {' or '.join(COMPRESSIONS)})"


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

    @property
    def versions(self) -> tuple[str, ...]:
        """What is another text once a file has changed, of each file."""
        paths = (path for each in self._files.splits.values() for path in each)
        return tuple(str(self._files.fs.ukey(path)) for path in paths)

    def count(self, split: str) -> int:
        """Returns how many rows the split has: Parquet's footers, else a pass over the files."""
        total = 0
        for path in self._files.splits[split]:
            with _in_context(path), self._open(path) as file:
                total += _format_of(path).count(file)
        return total

    def types(self, split: str) -> Any:
        """Returns the Arrow schema of the split's first file; None where its format has none."""
        for path in self._files.splits[split][:1]:
            with _in_context(path), self._open(path) as file:
                return _format_of(path).types(file)
        return None

    def rows(self, split: str, shape: RowShape) -> Iterator[SourceRow]:
        """Yields every row of the split, in file order.

        Raises:
            DataError: If a column is missing, or a row cannot be read (the message says where).
        """
        for path in self._files.splits[split]:
            with _in_context(path):
                yield from self._rows_of(path, shape)

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
                for _, row in rows:
                    yield row if columns is None else {n: row[n] for n in columns if n in row}

    def _rows_of(self, path: str, shape: RowShape) -> Iterator[SourceRow]:
        form = _format_of(path)
        with self._open(path) as file:
            columns = form.columns(file)
        if not columns:
            return
        with self._open(path) as file:
            types = form.types(file)
        build = shape.of(columns, PurePosixPath(path).name, types)

        def resolve(relative: str) -> str:
            return self._beside(path, relative)

        with (
            self._open(path) as file,
            closing(_rows(form, file, build)) as rows,
        ):
            for each in rows:
                if isinstance(each, PlacedBatch):
                    yield from _of_batch(build, each)
                    continue
                place, row = each
                try:
                    yield build(row, resolve)
                except ValueError as error:
                    raise RowError(place, str(error)) from None

    def _beside(self, path: str, relative: str) -> str:
        """Returns the address of a file that is named relative to a data file."""
        fs, address = self._files.fs, f"{path.rpartition('/')[0]}/{relative}"
        return address if "file" in fs.protocol else str(fs.unstrip_protocol(address))

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


def _of_batch(build: RowBuilder, rows: PlacedBatch) -> Iterator[SourceRow]:
    done = 0
    try:
        for row in build.of_batch(rows.batch):
            yield row
            done += 1
    except ValueError as error:
        raise RowError(rows.place(done), str(error)) from None


def _rows(
    form: Format, file: BinaryIO, build: RowBuilder
) -> Generator[PlacedBatch | tuple[Place, Row]]:
    if build.takes_batches and isinstance(form, JsonLines | Csv | Parquet):
        yield from form.batch_rows(file, build.needed, build.required)
    else:
        yield from form.rows(file, build.needed)


def _format_of(path: str) -> Format:
    return _FORMATS[data_suffix(path) or ".txt"]
