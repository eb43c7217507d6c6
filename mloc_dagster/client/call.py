"""A request and how to read its answer, described once for both clients."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import httpx
from pydantic import ValidationError

from mloc_dagster.client.errors import ApiError
from mloc_dagster.errors import DataError
from mloc_dagster.wire import Wire

OpenPart = tuple[str, tuple[str, IO[bytes] | bytes]]


@dataclass(frozen=True, slots=True, kw_only=True)
class FilePart:
    """A file of a form.

    Attributes:
        field: The form's field.
        name: What the file is called there.
        content: The file, or what is in it.
    """

    field: str
    name: str
    content: Path | bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """A request.

    Attributes:
        method: `GET`, `POST`.
        path: Below the API's address.
        query: Parameters; a name may stand several times.
        headers: Beyond those that every request has.
        content: The body.
        parts: Files; they make the body a form.
        repeatable: Whether asking twice does no more than asking once.
        accepts: Statuses beyond success whose body is an answer.
        shown_file: How the user calls the template in the body.
        timeout_s: How long it may be silent; by default as long as the client allows.
    """

    method: str
    path: str
    query: Sequence[tuple[str, str]] = ()
    headers: Mapping[str, str] = field(default_factory=dict)
    content: bytes | None = None
    parts: Sequence[FilePart] = ()
    repeatable: bool = True
    accepts: frozenset[int] = frozenset()
    shown_file: str = ""
    timeout_s: float | None = None

    @contextmanager
    def opened(self) -> Generator[Sequence[OpenPart]]:
        """Opens the files of the form; each attempt reads them anew.

        Raises:
            DataError: If one cannot be read.
        """
        with ExitStack() as stack:
            yield [(each.field, (each.name, _open(each.content, stack))) for each in self.parts]


@dataclass(frozen=True, slots=True, kw_only=True)
class Call[ReplyT](Ask):
    """A request with one answer.

    Attributes:
        read: Reads the answer's body.
    """

    read: Callable[[bytes], ReplyT]

    def reply(self, response: httpx.Response) -> ReplyT:
        """Returns what an answer says.

        Raises:
            ApiError: If it is none that this client understands.
        """
        try:
            return self.read(response.content)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(str(each) for each in first["loc"])
            raise ApiError(
                f"{self.method} {self.path}: the answer is not that of an mloc API, or of another"
                f" version: {where}: {first['msg']}",
                status=response.status_code,
            ) from None


def reading[WireT: Wire](model: type[WireT]) -> Callable[[bytes], WireT]:
    """Returns what reads a body as a wire model."""
    return model.model_validate_json


def _open(content: Path | bytes, stack: ExitStack) -> IO[bytes] | bytes:
    if isinstance(content, bytes):
        return content
    try:
        return stack.enter_context(content.open("rb"))
    except OSError as error:
        raise DataError(f"cannot read {content}: {error.strerror or error}") from error
