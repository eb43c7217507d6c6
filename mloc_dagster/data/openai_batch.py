"""Files in OpenAI's batch format: one request a line, each read as rows.

The file is read twice, and never held: first as a whole for what would fail it as a whole, as the
hosted service does before it starts a batch; then request by request.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import lzma
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, BinaryIO, cast

import msgspec

from mloc_dagster.data.files import refuse_pipes
from mloc_dagster.data.openai_options import (
    COMPLETIONS,
    EMBEDDINGS,
    ENDPOINTS,
    RequestError,
    options_of,
    prompts_of,
)
from mloc_dagster.errors import DataError, TransientError, nearest_hint
from mloc_dagster.net import RefusedAddressError, check_upload, file_system
from mloc_dagster.results import BASE64, SourceRow
from mloc_dagster.schema import HALF_A_CHARACTER, OpenaiBatchData


@dataclass(frozen=True, slots=True)
class RequestBlock:
    """What a task says of the requests it answers.

    Attributes:
        task_type: `inference`, `embedding`, …
        given: Names of the fields that its block sets itself: these hold where a body is silent.
        adapters: Names that mean an adapter in a body's `model`.
    """

    task_type: str = "inference"
    given: frozenset[str] = frozenset()
    adapters: frozenset[str] = frozenset()


class Requests(OpenaiBatchData):
    """A batch file, together with what the task says of it."""

    block: RequestBlock
    """The task's part."""


def block_of(data: OpenaiBatchData) -> RequestBlock:
    """Returns what the task says of a batch file."""
    return data.block if isinstance(data, Requests) else RequestBlock()


def request_rows(url: str, custom_id: str, body: object, block: RequestBlock) -> list[SourceRow]:
    """Returns the rows that a request means: one, or one for each text of its list.

    A request that cannot be answered is one row with the reason in `error`.
    """
    try:
        given = _object(body)
        options = options_of(url, given, block.given)
        model = given.get("model")
        adapter = model if isinstance(model, str) and model in block.adapters else None
        encoding = BASE64 if url == EMBEDDINGS and given.get("encoding_format") == BASE64 else ""
        return [
            SourceRow(
                prompt,
                custom_id,
                options or None,
                adapter,
                verbatim=url == COMPLETIONS,
                encoding=encoding,
            )
            for prompt in prompts_of(url, given)
        ]
    except RequestError as error:
        return [SourceRow("", custom_id, error=str(error))]


def _object(body: object) -> dict[str, Any]:
    if not isinstance(body, dict):
        raise RequestError(f"the body is no JSON object, but {type(body).__name__}")
    return cast("dict[str, Any]", body)


NAMED_DEFECTS = 20
"""Defects that are listed; the rest are counted."""

_NAMED_MODELS = 2
"""Of several models two are told: the file is wrong then, or its task answers for all of them."""

_CORRUPT = (EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError, zipfile.BadZipFile)
_ID_BYTES = 10
_MOST_CHARACTERS = 60


@dataclass(frozen=True, slots=True)
class Defect:
    """What fails a batch file as a whole.

    Attributes:
        line: The line in which it is, from 1.
        message: What is wrong.
    """

    line: int
    message: str


@dataclass(slots=True)
class BatchFile:
    """What a first reading of a batch file found.

    Attributes:
        url: The file.
        requests: How many requests it has.
        endpoints: How many for each endpoint.
        first_lines: The first line with each endpoint.
        models: The first line with each model that a body names, of the first two models.
        sha256: Hex digest over its bytes.
        defects: The first defects.
        more_defects: How many more there are.
    """

    url: str = ""
    requests: int = 0
    endpoints: Counter[str] = field(default_factory=Counter[str])
    first_lines: dict[str, int] = field(default_factory=dict[str, int])
    models: dict[str, int] = field(default_factory=dict[str, int])
    sha256: str = ""
    defects: list[Defect] = field(default_factory=list[Defect])
    more_defects: int = 0

    def add(self, number: int, request: dict[str, Any]) -> None:
        """Notes a request and its line."""
        self.endpoints[request["url"]] += 1
        self.first_lines.setdefault(request["url"], number)
        body = request["body"]
        model = cast("dict[str, Any]", body).get("model") if isinstance(body, dict) else None
        if isinstance(model, str) and len(self.models) < _NAMED_MODELS:
            self.models.setdefault(model, number)

    def check(self) -> None:
        """Raises what is wrong.

        Raises:
            DataError: With every defect that is kept.
        """
        if not self.defects:
            return
        more = [f"… and {self.more_defects:,} more"] if self.more_defects else []
        named = [f"{self.url}:{each.line}: {each.message}" for each in self.defects]
        raise DataError("\n".join([*named, *more]))


def scan_batch(url: str) -> BatchFile:
    """Reads a batch file and notes everything that fails it as a whole.

    Memory grows by some bytes per request, for finding a `custom_id` that comes twice.

    Raises:
        DataError: If there is no such file, or no request in it.
        TransientError: If it cannot be read now.
    """
    found, digest = BatchFile(url), hashlib.sha256()
    seen: dict[bytes, int] = {}
    for number, line in _lines(url):
        digest.update(line)
        if line.isspace():
            continue
        found.requests += 1
        try:
            request = _request(line)
            found.add(number, request)
            key = hashlib.blake2b(request["custom_id"].encode(), digest_size=_ID_BYTES).digest()
            _check_new(request["custom_id"], number, seen.setdefault(key, number))
        except ValueError as error:
            if len(found.defects) < NAMED_DEFECTS:
                found.defects.append(Defect(number, str(error)))
            else:
                found.more_defects += 1
    if not found.requests:
        raise DataError(f"{url}: no requests: the file is empty")
    found.sha256 = digest.hexdigest()
    return found


def first_request(url: str) -> None:
    """Reads as far as the first request.

    Raises:
        DataError: If there is no such file, no request in it, or the first is none.
        TransientError: If it cannot be read now.
    """
    for number, line in _lines(url):
        if not line.isspace():
            try:
                _request(line)
            except ValueError as error:
                raise DataError(f"{url}:{number}: {error}") from None
            return
    raise DataError(f"{url}: no requests: the file is empty")


def batch_rows(url: str, block: RequestBlock) -> tuple[str, Iterator[SourceRow]]:
    """Opens a batch file whose requests a task can answer.

    Args:
        url: A path or fsspec URL.
        block: What the task says of them.

    Returns:
        What is read, for people; and the rows. Those of one request follow each other and have
        the same `custom_id`.

    Raises:
        DataError: If the file as a whole is no batch, or asks for what the task does not do.
        TransientError: If it cannot be read now.
    """
    found = scan_batch(url)
    found.check()
    check_endpoints(url, found, block.task_type)
    return f"{url}, {found.requests} requests", _rows(url, block)


def check_endpoints(url: str, found: BatchFile, task_type: str | None = None) -> str:
    """Returns the task type that answers a file's requests.

    Args:
        url: The file, for the message.
        found: What is in it.
        task_type: What is to answer them; by default either will do.

    Raises:
        DataError: If the file asks for texts and vectors, or for what the task does not give.
    """
    vectors = found.endpoints[EMBEDDINGS]
    texts = found.requests - vectors
    if vectors and texts:
        raise DataError(
            f"{url}: {texts:,} requests for text and {vectors:,} for {EMBEDDINGS}: one model "
            "cannot answer both; make two files of it"
        )
    needed = "embedding" if vectors else "inference"
    if task_type is not None and (needed == "embedding") != (task_type == "embedding"):
        raise DataError(
            f"{url}: its {found.requests:,} requests need taskType {needed}, not {task_type}"
        )
    return needed


def _rows(url: str, block: RequestBlock) -> Iterator[SourceRow]:
    for number, line in _lines(url):
        if line.isspace():
            continue
        try:
            request = _request(line)
        except ValueError as error:  # it was sound when it was read first
            raise DataError(f"{url}:{number}: {error}") from None
        if request.get("method") != "POST":
            yield SourceRow("", request["custom_id"], error=_other_method(request))
            continue
        yield from request_rows(request["url"], request["custom_id"], request.get("body"), block)


def _request(line: bytes) -> dict[str, Any]:
    """Returns the request in a line.

    Raises:
        ValueError: If it is none; says why.
    """
    try:
        request = _decoded(line)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(request, dict):
        raise ValueError(f"expected a JSON object, got {type(request).__name__}")  # noqa: TRY004
    given = cast("dict[str, Any]", request)
    custom_id = given.get("custom_id")
    if not isinstance(custom_id, str) or not custom_id:
        raise ValueError(f"custom_id is missing{_shown(given, 'custom_id')}; it must be text")
    try:
        custom_id.encode()
    except UnicodeEncodeError:
        shown = _shown(given, "custom_id")
        raise ValueError(f"custom_id is {HALF_A_CHARACTER}{shown}") from None
    if given.get("url") not in ENDPOINTS:
        hint = nearest_hint(str(given.get("url")), ENDPOINTS)
        raise ValueError(f"url is no endpoint of a batch{_shown(given, 'url')}{hint}")
    if "body" not in given:
        raise ValueError("body is missing")
    return given


def _decoded(line: bytes) -> object:
    try:
        return msgspec.json.decode(line)
    except msgspec.DecodeError as error:
        # Half of a surrogate pair, which only the standard library reads, is its request's error.
        with suppress(ValueError):
            return json.loads(line, parse_constant=_no_number)
        raise ValueError(f"not a JSON object in one line: {error}") from None


def _no_number(word: str) -> None:
    raise ValueError(f"{word} is no JSON")


def _other_method(request: dict[str, Any]) -> str:
    if "method" not in request:
        return "method is missing; it must be POST"
    return f"method must be POST, not {request['method']!r}"


def _check_new(custom_id: str, number: int, first: int) -> None:
    if first != number:
        raise ValueError(f"custom_id {custom_id!r} was used in line {first}")


def _shown(given: dict[str, Any], name: str) -> str:
    if name not in given:
        return ""
    text = repr(given[name])
    return f": {text if len(text) <= _MOST_CHARACTERS else text[:_MOST_CHARACTERS] + '…'}"


def _lines(url: str) -> Iterator[tuple[int, bytes]]:
    with _open(url) as file:
        for number, line in enumerate(file, start=1):
            yield number, line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line


@contextmanager
def _open(url: str) -> Iterator[BinaryIO]:
    try:
        system, path = file_system(url)
        refuse_pipes(system, (path,), url)
        check_upload(system, path)
        with system.open(path, "rb", compression="infer") as file:
            yield file
    except (FileNotFoundError, IsADirectoryError) as error:
        what = "no such file" if isinstance(error, FileNotFoundError) else "is a folder"
        raise DataError(f"{url}: {what}") from error
    except (ImportError, PermissionError, RefusedAddressError, ValueError) as error:
        raise DataError(f"{url}: cannot be read: {error}") from error
    except _CORRUPT as error:
        raise DataError(f"{url}: damaged, or not compressed as its name says: {error}") from error
    except OSError as error:
        if error.errno is None and url.endswith(".bz2"):  # all that its decompressor raises
            raise DataError(f"{url}: damaged, or no bzip2 file: {error}") from error
        raise TransientError(f"{url}: cannot be read: {error}") from error
