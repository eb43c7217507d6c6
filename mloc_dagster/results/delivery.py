"""Delivery of results to a folder, a URL or an endpoint; repeating it is safe."""

from __future__ import annotations

import hashlib
import random
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import IO
from urllib.parse import urlsplit, urlunsplit

import httpx
from pydantic import BaseModel, ConfigDict

from mloc_dagster.errors import DeliveryError, InputError
from mloc_dagster.net import LOCAL, Reach, RefusedAddressError, check_result_path, guarded_client
from mloc_dagster.redaction import redact_urls
from mloc_dagster.results.aggregate import RESPONSES_NAME
from mloc_dagster.results.files import BUFFER_BYTES
from mloc_dagster.results.record import RECORD_NAME
from mloc_dagster.results.store import Folder
from mloc_dagster.schema import HttpDestination, LocalDestination
from mloc_dagster.settings import settings


class DeliveredItem(BaseModel):
    """One file that arrived.

    Attributes:
        name: The file, below the task's folder.
        target: Where it went; environment references and passwords are not filled in.
        size: Bytes.
        attempts: Tries that it took.
        idempotency_key: By which the receiver knows it again; None for a copy on the store.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    target: str
    size: int
    attempts: int = 1
    idempotency_key: str | None = None


class DeliveryReport(BaseModel):
    """What arrived.

    Attributes:
        items: In the order of sending; empty when the destination is the task's own folder.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    items: tuple[DeliveredItem, ...] = ()


_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 60.0
_BODY_CHARACTERS = 200
_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_RETRIED = {408, 425, 429}

Send = Callable[[IO[bytes]], httpx.Response]


@dataclass(frozen=True, slots=True)
class _Target:
    """An address to use, and the same address to show."""

    url: str
    shown: str

    def below(self, path: str) -> _Target:
        return _Target(_join(self.url, path), _join(self.shown, path))


def send(
    folder: Folder,
    task_id: str,
    destination: HttpDestination,
    files: Sequence[str],
    pause: Callable[[float], None],
    reach: Reach,
) -> Iterator[DeliveredItem]:
    """Sends the result document, then each file; see `delivery.deliver`."""
    target = _Target(_expanded_url(destination, reach), _shown(destination.url))
    headers = httpx.Headers(_headers(destination, reach))
    # It says what the document is: a form's own type names the boundary of its parts.
    content_type = headers.pop("Content-Type", "application/json")
    private, setting = reach.private(
        settings().destination_private_addresses, "MLOC_DESTINATION_PRIVATE_ADDRESSES"
    )
    with guarded_client(
        private=private,
        setting=setting,
        headers=headers,
        timeout=destination.timeout_s,
        follow_redirects=False,
    ) as client:
        sender = _Sender(folder, task_id, client, destination, pause)
        yield sender.document(target, content_type)
        for name in files:
            yield sender.file(name, target.below(f"{task_id}/files"))


class _Sender:
    def __init__(
        self,
        folder: Folder,
        task_id: str,
        client: httpx.Client,
        destination: HttpDestination,
        pause: Callable[[float], None],
    ) -> None:
        self._folder = folder
        self._task_id = task_id
        self._client = client
        self._destination = destination
        self._pause = pause

    def document(self, target: _Target, content_type: str) -> DeliveredItem:
        """Sends `responses.json` as the body."""
        size = self._size(RESPONSES_NAME)
        key = self._key(RESPONSES_NAME, b"")
        headers = {
            "Content-Type": content_type,
            "Content-Length": str(size),
            "Idempotency-Key": key,
        }

        def post(file: IO[bytes]) -> httpx.Response:
            return self._client.request(
                self._destination.method, target.url, content=_blocks(file), headers=headers
            )

        attempts = self._try(RESPONSES_NAME, target, post)
        return DeliveredItem(
            name=RESPONSES_NAME,
            target=target.shown,
            size=size,
            attempts=attempts,
            idempotency_key=key,
        )

    def file(self, name: str, target: _Target) -> DeliveredItem:
        """Uploads a file as a form, its name in the folder kept."""
        size = self._size(name)
        key = self._key(name, name.encode() + b"\0")

        def post(file: IO[bytes]) -> httpx.Response:
            return self._client.post(
                target.url, files={"file": (name, file)}, headers={"Idempotency-Key": key}
            )

        attempts = self._try(name, target, post)
        return DeliveredItem(
            name=name, target=target.shown, size=size, attempts=attempts, idempotency_key=key
        )

    def _try(self, name: str, target: _Target, post: Send) -> int:
        last = self._destination.max_attempts
        problem = ""
        for attempt in range(1, last + 1):
            pause_s = random.uniform(0.5, 1.0) * _FIRST_PAUSE_S * 2 ** (attempt - 1)  # noqa: S311
            try:
                with self._folder.open(name) as file:
                    response = post(file)
            except RefusedAddressError as error:
                raise DeliveryError(f"{target.shown} may not be used: {error}") from error
            except httpx.RequestError as error:
                problem = f"{type(error).__name__}: {error}"
            else:
                if response.is_success:
                    return attempt
                problem = _problem(response)
                if response.status_code not in _RETRIED and response.status_code < 500:
                    raise DeliveryError(f"{target.shown} refused {name}: {problem}")
                pause_s = _retry_after(response) or pause_s
            if attempt < last:
                self._pause(min(pause_s, _LONGEST_PAUSE_S))
        raise DeliveryError(f"{target.shown} did not take {name} in {last} attempts: {problem}")

    def _size(self, name: str) -> int:
        try:
            return self._folder.size(name)
        except FileNotFoundError:
            raise DeliveryError(
                f"cannot deliver {name!r}: {self._folder.url} has no such file"
            ) from None

    def _key(self, name: str, prefix: bytes) -> str:
        digest = hashlib.sha256(prefix)
        with self._folder.open(name) as file:
            for block in _blocks(file):
                digest.update(block)
        return f"{self._task_id}:{digest.hexdigest()[:32]}"


def _expanded_url(destination: HttpDestination, reach: Reach) -> str:
    url = reach.filled_in(destination.url)
    try:
        valid = httpx.URL(url).scheme in ("http", "https") and httpx.URL(url).host
    except httpx.InvalidURL:  # whose text may quote what was filled in
        valid = False
    if not valid:
        raise DeliveryError(f"{_shown(destination.url)} is no HTTP URL once filled in")
    return url


def _headers(destination: HttpDestination, reach: Reach) -> dict[str, str]:
    headers: dict[str, str] = {}
    for name, secret in destination.headers.items():
        value = reach.filled_in(secret.get_secret_value())
        # Checked here: the HTTP library would quote the value in its error.
        text = f"{name}{value}"
        if not text.isascii() or not text.isprintable() or value != value.strip():
            raise DeliveryError(
                f"header {name!r} has a line break, a space at an end, or a character that HTTP "
                "does not carry"
            )
        if _HEADER_NAME.fullmatch(name) is None:
            raise DeliveryError(f"{name!r} is no name of an HTTP header")
        headers[name] = value
    return headers


def _problem(response: httpx.Response) -> str:
    status = f"HTTP {response.status_code}"
    if response.is_redirect:
        return f"{status}, a redirect, and none is followed: name the final address"
    body = response.text[:_BODY_CHARACTERS].strip()
    return f"{status}: {body}" if body else status


def _retry_after(response: httpx.Response) -> float | None:
    asked = response.headers.get("Retry-After", "")
    return float(asked) if asked.isdecimal() else None


def _blocks(file: IO[bytes]) -> Iterator[bytes]:
    while block := file.read(BUFFER_BYTES):
        yield block


def _join(url: str, path: str) -> str:
    parts = urlsplit(url)
    return urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}/{path}"))


def _shown(url: str) -> str:
    parts = urlsplit(url)
    return redact_urls(urlunsplit(parts._replace(netloc=parts.netloc.rsplit("@", 1)[-1])))


def deliver(
    folder: Folder,
    task_id: str,
    destination: HttpDestination | LocalDestination,
    artifacts: Sequence[str],
    *,
    reach: Reach = LOCAL,
    pause: Callable[[float], None] = time.sleep,
) -> DeliveryReport:
    """Sends `responses.json` and the artifacts over HTTP, or copies the artifacts on the store.

    Args:
        folder: The task's folder, complete.
        task_id: The task.
        destination: Where to.
        artifacts: Files and folders of the task's folder.
        reach: Which addresses and variables of the environment the task may use.
        pause: Waits between tries.

    Raises:
        DeliveryError: If an artifact is missing, the receiver refuses, or stays unreachable.
        InputError: If a header or the URL needs an environment variable that is not set, or a
            local path leaves the store, or the task may not use one of them.
    """
    if isinstance(destination, LocalDestination):
        return _copy(folder, destination, artifacts)

    return DeliveryReport(
        items=tuple(send(folder, task_id, destination, find_files(folder, artifacts), pause, reach))
    )


def find_files(folder: Folder, artifacts: Sequence[str]) -> list[str]:
    """Returns the files that the artifacts stand for, each once.

    Raises:
        DeliveryError: If an artifact is not there.
    """
    files: dict[str, None] = {}
    for artifact in artifacts:
        name = artifact.rstrip("/")
        below = folder.list(name, recursive=True)
        if not below and not folder.exists(name):
            raise DeliveryError(f"cannot deliver {artifact!r}: {folder.url} has no such file")
        files.update(dict.fromkeys(below or [name]))
    return list(files)


def _copy(
    folder: Folder, destination: LocalDestination, artifacts: Sequence[str]
) -> DeliveryReport:
    path = destination.path
    # Old templates name absolute paths of the machine they were written on.
    if path is None or PurePosixPath(path).is_absolute():
        return DeliveryReport()
    below = str(PurePosixPath(path))
    if below == ".":  # the results root, where the task's own folder lies already
        return DeliveryReport()
    check_result_path(below)
    target = folder.store.folder(below)
    first = folder.store.folder(below.split("/")[0])
    if first.exists(RECORD_NAME):
        raise InputError(f"output.destination.path {path!r} is the folder of task {first.name!r}")
    items: list[DeliveredItem] = []
    for name in find_files(folder, artifacts):
        with folder.open(name) as source, target.create(name) as copy:
            while block := source.read(BUFFER_BYTES):
                copy.write(block)
        items.append(
            DeliveredItem(name=name, target=f"{target.url}/{name}", size=folder.size(name))
        )
    return DeliveryReport(items=tuple(items))
