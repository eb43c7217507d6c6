"""Documents: files that are one each, or the rows of a dataset, as rows of a `chunk` task."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import PurePosixPath
from typing import Any, cast

import msgspec
from fsspec.implementations.local import LocalFileSystem

from mloc_dagster.data.dataset import OpenedRows, Table, known_split, open_table, sliced
from mloc_dagster.data.files import check_files, looks_like_files, open_file_system, reading
from mloc_dagster.data.formats import holds_bytes
from mloc_dagster.data.selection import Selection
from mloc_dagster.errors import NOT_A_FILE, DataError, TransientError
from mloc_dagster.results import RESERVED_COLUMNS, SourceRow, free_name
from mloc_dagster.schema import (
    DOCUMENT_TYPES,
    DatasetData,
    Documents,
    SplitPart,
    data_suffix,
    document_type,
    is_glob,
    known_names,
    parse_split,
)

PATH_COLUMN, TEXT_COLUMN = "path", "text"
"""The columns of documents that are files."""

_PDF = "application/pdf"
_HTML = "text/html"
_CHARSET = re.compile(rb"""<meta[^>]+charset\s*=\s*["']?\s*([\w.:-]+)""", re.IGNORECASE)
_CHARSET_WITHIN = 1024  # where the HTML standard has it
_AT_ONCE = 32
_AT_ONCE_BYTES = 32 << 20
"""Files that are fetched together, as object stores answer many at once: the first bound counts."""


def document_rows(data: Documents) -> OpenedRows:
    """Opens the documents that a block means.

    What can be checked without reading them is checked before this returns.

    Raises:
        DataError: If there are none, or a column is not there.
        TransientError: If they cannot be reached.
    """
    files = find_documents(data.url)
    if files is not None:
        return OpenedRows(f"{data.url} ({len(files):,} documents)", files.rows(data))
    return _rows_of_dataset(data)


class DocumentFiles(Sequence[str]):
    """Files that are a document each, by path in order.

    Args:
        fs: The fsspec file system they lie on.
        base: The folder below which their paths name them.
        sizes: Their bytes, by path.
        url: As the user wrote it.
    """

    def __init__(self, fs: Any, base: str, sizes: Mapping[str, int], url: str) -> None:
        self._fs = fs
        self._base = base
        self._paths = sorted(sizes)
        self._sizes = sizes
        self._url = url

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, place: Any) -> Any:
        return self._paths[place]

    def rows(self, data: Documents) -> Iterator[SourceRow]:
        """Returns a stream with a row for each document.

        Raises:
            DataError: If the block names a column that files do not have, or selects what there
                is not.
            TransientError: While reading, if a file cannot be reached.
        """
        columns = (PATH_COLUMN, TEXT_COLUMN)
        for field, name, right in (
            ("id_column", data.id_column, PATH_COLUMN),
            ("text_column", data.text_column, TEXT_COLUMN),
        ):
            if name != right:
                hint = known_names(name, columns, "columns")
                raise DataError(f"data.{field}: files have no column {name!r}{hint}", field)
        _check_kept(data, columns, "files have")
        selection = Selection(data.only)
        selection.check_columns((PATH_COLUMN,), self._url)
        paths = [each for part in parse_split(data.split) for each in self._slice(part)]
        if data.only:
            named = [{PATH_COLUMN: self._name(each), "file": each} for each in paths]
            paths = [each["file"] for each in selection.records(named, self._url)]
        return self._read(paths, data.keep)

    def _slice(self, part: SplitPart) -> Sequence[str]:
        known_split(part.split, ("train",), self._url)
        if part.needs_total:
            wanted = part.resolve(len(self._paths))
            return self._paths[wanted.start : wanted.stop]
        return self._paths[part.start or 0 : part.stop]

    def _name(self, path: str) -> str:
        return path.removeprefix(self._base).lstrip("/") or PurePosixPath(path).name

    def _read(self, paths: Iterable[str], keep: object) -> Iterator[SourceRow]:
        kept = keep == "all" or PATH_COLUMN in cast("tuple[str, ...]", keep or ())
        for some in self._batches(paths):
            with reading(self._url):
                found = self._fs.cat_ranges(some, None, None, on_error="return")
            for path, content in zip(some, found, strict=True):
                name = self._name(path)
                if isinstance(content, FileNotFoundError | PermissionError):
                    row = SourceRow("", error=f"{name}: cannot be read: {content}")
                elif isinstance(content, Exception):
                    raise TransientError(f"{path}: cannot be read: {content}") from content
                else:
                    row = _row_of_file(name, content)
                columns = {PATH_COLUMN: name}
                yield msgspec.structs.replace(
                    row,
                    custom_id=name,
                    columns=columns if kept else None,
                    payload=columns if kept else None,
                )

    def _batches(self, paths: Iterable[str]) -> Iterator[list[str]]:
        some: list[str] = []
        size = 0
        for path in paths:
            some.append(path)
            size += self._sizes[path]
            if len(some) >= _AT_ONCE or size >= _AT_ONCE_BYTES:
                yield some
                some, size = [], 0
        if some:
            yield some


def find_documents(url: str) -> DocumentFiles | None:
    """Finds the files that a URL means, where they are documents; None where it means a dataset.

    Args:
        url: A file, a folder or a glob; or what a `dataset` block may have.

    Raises:
        DataError: If files are both, or there are none.
        TransientError: If the file system cannot be reached.
    """
    if not looks_like_files(url):
        return None
    fs, path = open_file_system(url)
    with reading(url):
        sizes, base = _listed(fs, path)
    documents = {each: size for each, size in sizes.items() if document_type(each)}
    if not documents:
        if any(map(data_suffix, sizes)) or (not sizes and not is_glob(path)):
            return None  # what is wrong with it, data sets say
        known = ", ".join(DOCUMENT_TYPES)
        raise DataError(f"{url}: no documents there; mloc reads {known}, and rows of datasets")
    if is_glob(path) or len(documents) > 1:
        others = sorted(each for each in sizes if data_suffix(each) not in (None, ".txt"))
        if others:
            raise DataError(
                f"{url}: some of these files are documents ({_last(sorted(documents)[0])}) and "
                f"some hold rows ({_last(others[0])}); say which by their suffix, such as *.md"
            )
    for each in documents if isinstance(fs, LocalFileSystem) else ():
        if not fs.isfile(each):
            raise DataError(f"{each}: {NOT_A_FILE}")
    check_files(fs, documents)
    return DocumentFiles(fs, base, documents, url)


def _listed(fs: Any, path: str) -> tuple[dict[str, int], str]:
    """Returns the sizes of the files that a path means, and the folder that they lie in."""
    if is_glob(path) and not fs.exists(path):
        found = fs.glob(path, detail=True)
        fixed: list[str] = []
        for part in path.split("/"):
            if is_glob(part):
                break
            fixed.append(part)
        base = "/".join(fixed)
    elif fs.isdir(path):
        found, base = fs.find(path, detail=True), path
        found = {
            each: about
            for each, about in found.items()
            if not any(part.startswith(".") for part in each[len(path) :].split("/"))
        }
    else:
        found, base = ({path: fs.info(path)} if fs.exists(path) else {}), path.rpartition("/")[0]
    return {
        each: int(about.get("size") or 0)
        for each, about in found.items()
        if about.get("type") != "directory"
    }, base


def _last(path: str) -> str:
    return PurePosixPath(path).name


def _row_of_file(name: str, content: bytes) -> SourceRow:
    media_type = document_type(name) or ""
    if media_type == _PDF:
        return SourceRow("", content=content, media_type=media_type)
    try:
        return SourceRow(_decoded(content, media_type), media_type=media_type)
    except ValueError as error:
        return SourceRow("", error=f"{name}: {error}", media_type=media_type)


def _decoded(content: bytes, media_type: str) -> str:
    """Returns a file's text.

    Raises:
        ValueError: If it is none.
    """
    encoding = "utf-8-sig"
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        encoding = "utf-16"
    elif media_type == _HTML and (said := _CHARSET.search(content[:_CHARSET_WITHIN])):
        encoding = said[1].decode()
        if encoding.lower() in ("utf-8", "utf8"):
            encoding = "utf-8-sig"
    try:
        text = content.decode(encoding)
    except LookupError:
        raise ValueError(f"says that it is written in {encoding!r}, which is unknown") from None
    except UnicodeDecodeError as error:
        shown = "UTF-8" if encoding == "utf-8-sig" else encoding
        raise ValueError(f"not {shown} ({error.reason} at byte {error.start:,})") from None
    if (problem := _no_text(text)) is not None:
        raise ValueError(problem)
    return text


def _no_text(text: str) -> str | None:
    """Returns why a text is none; None if it is one."""
    place = text.find("\0")
    return None if place < 0 else f"no text: a null character at {place:,}"


def _rows_of_dataset(data: Documents) -> OpenedRows:
    table = open_table(
        DatasetData(type="dataset", url=data.url, name=data.name, revision=data.revision)
    )
    parts = parse_split(data.split)
    split = known_split(parts[0].split, table.splits, data.url)
    schema = table.types(split)
    columns = _first_columns(table, split) if schema is None else list(schema.names)
    if not columns:
        return OpenedRows(data.url, iter(()))
    for field, name in (("text_column", data.text_column), ("id_column", data.id_column)):
        if name not in columns:
            hint = known_names(name, columns, "columns")
            raise DataError(f"data.{field}: {data.url} has no column {name!r}{hint}", field)
    _check_kept(data, columns, f"{data.url} has")
    heavy = {each.name for each in schema or () if holds_bytes(each.type)}
    kept = _kept(data, [each for each in columns if each not in heavy])
    needed = list(dict.fromkeys([data.text_column, data.id_column, *kept.values(), *data.only]))
    selection = Selection(data.only)
    selection.check_columns(columns, data.url)
    records = sliced(table, parts, data.url, lambda each: table.records(each, needed))
    if data.only:
        records = selection.records(records, f"{data.url} {data.split}")
    types = {shown: schema.field(name).type for shown, name in kept.items() if schema is not None}
    named = [data.url, *([data.name] if data.name else []), data.split]
    named += [f"({name}: {value})" for name, value in data.only.items()]
    rows = _named_once((_row_of_record(each, data, kept) for each in records), data.id_column)
    return OpenedRows(f"{' '.join(named)} (documents in {data.text_column})", rows, types)


def _first_columns(table: Table, split: str) -> list[str]:
    with closing(table.records(split)) as records:
        return list(next(records, {}))


def _kept(data: Documents, columns: Sequence[str]) -> dict[str, str]:
    """Returns the columns that documents bring along, by what the results call them."""
    if data.keep == "all":
        kept = [each for each in columns if each != data.text_column]
    else:
        kept = list(data.keep or ())
    taken = set(RESERVED_COLUMNS)
    shown: dict[str, str] = {}
    for name in kept:
        free = free_name(name, taken)
        taken.add(free)
        shown[free] = name
    return shown


def _row_of_record(
    record: Mapping[str, object], data: Documents, kept: Mapping[str, str]
) -> SourceRow:
    text, identity = record.get(data.text_column), record.get(data.id_column)
    error = None
    if not isinstance(text, str):
        error = f"column {data.text_column!r}: expected text, got {_named(text)}"
    elif identity is None or identity == "":
        error = f"column {data.id_column!r}: the document has no name"
    else:
        error = _no_text(text)
    given = {name: record.get(name) for name in kept.values()}
    return SourceRow(
        "" if error is not None else cast("str", text),
        custom_id=None if identity is None else str(identity),
        error=error,
        columns={shown: record.get(name) for shown, name in kept.items()} or None,
        payload=msgspec.to_builtins(given, enc_hook=str) or None,
    )


def _named_once(rows: Iterable[SourceRow], column: str) -> Iterator[SourceRow]:
    """Yields rows; one whose name an earlier one has is an error, as nobody could cite it."""
    seen: dict[bytes, int] = {}
    for place, row in enumerate(rows):
        if row.error is None and row.custom_id is not None:
            key = hashlib.blake2b(row.custom_id.encode(), digest_size=16).digest()
            first = seen.setdefault(key, place)
            if first != place:
                error = f"column {column!r}: row {first} is called {row.custom_id!r} as well"
                yield SourceRow("", row.custom_id, error=error, columns=row.columns)
                continue
        yield row


def _named(value: object) -> str:
    return "null" if value is None else type(value).__name__


def _check_kept(data: Documents, columns: Sequence[str], where: str) -> None:
    for name in data.keep if isinstance(data.keep, tuple) else ():
        if name not in columns:
            hint = known_names(name, columns, "columns")
            raise DataError(f"data.keep: {where} no column {name!r}{hint}", "keep")
