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

from mloc_dagster.api.access_log import CALLER
from mloc_dagster.api.docs_pages import is_open
from mloc_dagster.api.problems import Refusal, problem_response
from mloc_dagster.settings import Settings
from mloc_dagster.wire import tokens_in

_log = logging.getLogger(__name__)

_PROBES = ("/healthz", "/healthz/ready")


class Tokens:
    """The tokens that open the API.

    A file is read again when it is another one than before. While it cannot be read, what it said
    last holds; before it said anything, nobody gets in.

    Args:
        token: One that never changes.
        file: One a line, as `client.token_file` has them.
    """

    def __init__(self, token: str | None, file: Path | None) -> None:
        self._fixed = {_digest(token): "MLOC_API_TOKEN"} if token else dict[bytes, str]()
        self._file = file
        self._seen: tuple[int, ...] | None = None
        self._of_file: dict[bytes, str] = {}
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

    def caller(self, authorization: str | None) -> str | None:
        """Returns the name of the token in an `Authorization` header; takes equally long for all.

        Returns:
            None if it does not open the API; `-` if that asks nobody.
        """
        if not self.asked_for:
            return "-"
        scheme, _, given = (authorization or "").partition(" ")
        digest = _digest(given.strip())
        found: str | None = None
        for known, name in self._known().items():
            if hmac.compare_digest(digest, known):
                found = name
        return found if scheme.lower() == "bearer" else None

    def _known(self) -> dict[bytes, str]:
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
            text = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            if self._seen is not None:
                _log.warning("the token file cannot be read, the last one holds: %s", error)
                self._seen = None
            return
        self._of_file = {_digest(token): name for token, name in tokens_in(text).items()}
        self._seen = seen


def _digest(token: str) -> bytes:
    # Equally long for all, or the comparison would tell the length.
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()


class BearerAuth:
    """Lets in who has a token; probes and the documentation need none.

    Args:
        app: What is behind.
        tokens: Which tokens.
    """

    def __init__(self, app: ASGIApp, tokens: Tokens) -> None:
        self._app = app
        self._tokens = tokens

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles a connection."""
        path = scope.get("path", "")
        if scope["type"] == "http" and path not in _PROBES and not is_open(path):
            given = Headers(scope=scope).getlist("authorization")
            caller = self._tokens.caller(given[0] if len(given) == 1 else None)
            if caller is None:
                detail = "this needs `Authorization: Bearer` with a token of this API"
                refusal = Refusal(
                    401, "unauthorized", detail, headers={"WWW-Authenticate": 'Bearer realm="mloc"'}
                )
                await problem_response(refusal, scope["path"])(scope, receive, send)
                return
            scope[CALLER] = caller
        await self._app(scope, receive, send)
