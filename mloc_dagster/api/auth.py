"""Who may ask: a bearer token, exchanged without a restart and never written down."""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
from pathlib import Path
from threading import Lock

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from mloc_dagster.api.problems import Refusal, problem_response
from mloc_dagster.settings import Settings

_log = logging.getLogger(__name__)

_OPEN_PATHS = ("/healthz", "/healthz/ready")


class Tokens:
    """The tokens that open the API.

    A file is read again when it is another one than before. While it cannot be read, what it said
    last holds; before it said anything, nobody gets in.

    Args:
        token: One that never changes.
        file: One a line; empty lines and those that begin with `#` mean nothing.
    """

    def __init__(self, token: str | None, file: Path | None) -> None:
        self._fixed = {_digest(token)} if token else set[bytes]()
        self._file = file
        self._seen: tuple[int, ...] | None = None
        self._of_file: set[bytes] = set()
        self._lock = Lock()

    @classmethod
    def of(cls, settings: Settings) -> Tokens:
        """Returns those that the settings name."""
        given = settings.api_token
        return cls(given.get_secret_value() if given else None, settings.api_token_file)

    @property
    def asked_for(self) -> bool:
        """Whether callers need one at all."""
        return bool(self._fixed) or self._file is not None

    def accept(self, authorization: str | None) -> bool:
        """Tells whether an `Authorization` header opens the API; takes equally long for all."""
        if not self.asked_for:
            return True
        scheme, _, given = (authorization or "").partition(" ")
        digest = _digest(given.strip())
        found = False
        for known in self._known():
            found |= hmac.compare_digest(digest, known)
        return found and scheme.lower() == "bearer"

    def _known(self) -> set[bytes]:
        if self._file is None:
            return self._fixed
        with self._lock:
            self._read(self._file)
            return self._fixed | self._of_file

    def _read(self, file: Path) -> None:
        try:
            found = os.stat(file)  # noqa: PTH116 (at every request)
            seen = (found.st_mtime_ns, found.st_size, found.st_ino, found.st_ctime_ns)
            if seen == self._seen:
                return
            lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
        except (OSError, UnicodeDecodeError) as error:
            if self._seen is not None:
                _log.warning("the token file cannot be read, the last one holds: %s", error)
                self._seen = None
            return
        self._of_file = {_digest(line) for line in lines if line and not line.startswith("#")}
        self._seen = seen


def _digest(token: str) -> bytes:
    # Equally long for all, or the comparison would tell the length.
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()


class BearerAuth:
    """Lets in who has a token; asks nobody who looks only whether the API lives.

    Args:
        app: What is behind.
        tokens: Which tokens.
    """

    def __init__(self, app: ASGIApp, tokens: Tokens) -> None:
        self._app = app
        self._tokens = tokens

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles a connection."""
        if scope["type"] == "http" and scope["path"] not in _OPEN_PATHS:
            given = Headers(scope=scope).getlist("authorization")
            if not self._tokens.accept(given[0] if len(given) == 1 else None):
                detail = "this needs `Authorization: Bearer` with a token of this API"
                refusal = Refusal(
                    401, "unauthorized", detail, headers={"WWW-Authenticate": 'Bearer realm="mloc"'}
                )
                await problem_response(refusal, scope["path"])(scope, receive, send)
                return
        await self._app(scope, receive, send)
