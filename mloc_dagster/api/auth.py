"""Bearer tokens, and the refusal of requests that another site's page makes a browser send.

A browser sends requests to `127.0.0.1` for any page that asks it to, and asks the server first only
where a method, a header or a content type is unusual. What a page cannot change says where a
request comes from: `Host`, `Origin`, `Sec-Fetch-Site`. Programs such as curl send neither of the
last two, and may do what they like.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import re
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from threading import Lock
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from mloc_dagster.api.metrics import CALLER
from mloc_dagster.api.openapi import is_open
from mloc_dagster.api.problems import Refusal, problem_response
from mloc_dagster.api.viewer_app import session_token, to_login
from mloc_dagster.settings import Settings
from mloc_dagster.wire import tokens_in

_HOST = re.compile(r"(?:\[([0-9a-f:.]+)\]|([^\s:/@\[\]]+))(?::\d{0,5})?", re.IGNORECASE)
_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
_OF_A_PAGE_ITSELF = ("same-origin", "none")
_SENT_UNASKED = frozenset(
    {"", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data"}
)
"""Content types that a browser sends to any site without a preflight; no body has none."""


class OriginGuard:
    """Refuses unknown hosts, and what pages of other origins ask for; HTTP and websockets.

    Args:
        app: What is behind.
        bound: The name or address that the server was told to listen on.
        hosts: More names by which it may be called; `*` is any.
        origins: Other origins whose pages may ask, such as `https://tools.example.org`.
        token: Whether callers need a token: no page can send one unasked.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        bound: str,
        hosts: Sequence[str] = (),
        origins: Sequence[str] = (),
        token: bool = False,
    ) -> None:
        self._app = app
        self._hosts = frozenset({"localhost", _plain(bound), *(_plain(each) for each in hosts)})
        self._origins = frozenset(each.lower().rstrip("/") for each in origins)
        self._token = token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles a connection."""
        refusal = self._refusal(scope) if scope["type"] in ("http", "websocket") else None
        if refusal is None:
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await problem_response(refusal, scope["path"])(scope, receive, send)
        else:
            await send({"type": "websocket.close", "code": 1008, "reason": refusal.kind})

    def _refusal(self, scope: Scope) -> Refusal | None:
        headers = Headers(scope=scope)
        given = headers.getlist("host")
        if len(given) != 1 or not self._is_ours(given[0], scope):
            shown = ascii(given[0][:200]) if given else "none"
            detail = f"the host {shown} is not one of this server's: name it in MLOC_ALLOWED_HOSTS"
            return Refusal(421, "unknown-host", detail)
        method = scope.get("method", "")
        if self._is_foreign(headers, given[0], method):
            whence = ascii(headers.get("origin", "another site")[:200])
            detail = (
                f"a page of {whence} asked for this: only pages of this server and of the API's "
                "MLOC_API_ALLOWED_ORIGINS may"
            )
            return Refusal(403, "cross-origin", detail)
        if self._may_be_foreign(headers, method):
            detail = (
                "a browser sends this content type for any page: send application/yaml or "
                "application/json, or a token"
            )
            return Refusal(415, "unsafe-content-type", detail)
        return None

    def _is_ours(self, host: str, scope: Scope) -> bool:
        """Tells whether a `Host` is no name that somebody else's DNS leads here."""
        found = _HOST.fullmatch(host)
        if found is None:
            return False
        name = _plain(found[1] or found[2])
        if name in self._hosts or "*" in self._hosts:
            return True
        address = _address(name)
        if address is None:
            return False
        # The address that this very connection came to: of a server that listens on all.
        reached = scope.get("server") or ("", None)
        return address.is_loopback or address == _address(str(reached[0]))

    def _is_foreign(self, headers: Headers, host: str, method: str) -> bool:
        origin = headers.get("origin", "").lower()
        if origin and origin in self._origins:
            return False
        site = headers.get("sec-fetch-site", "").lower()
        if site in _OF_A_PAGE_ITSELF:
            return False
        if site:
            return not _follows_a_link(headers, method)
        return bool(origin) and urlsplit(origin).netloc != host.lower()

    def _may_be_foreign(self, headers: Headers, method: str) -> bool:
        """Tells whether an old browser may have sent this: one that says nothing of its pages."""
        if self._token or not method or method in _SAFE_METHODS:
            return False
        if "origin" in headers or "sec-fetch-site" in headers:
            return False
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        return headers.get("user-agent", "").startswith("Mozilla/") and kind in _SENT_UNASKED


def _follows_a_link(headers: Headers, method: str) -> bool:
    """Tells whether a person follows a link of another page, to a page of its own."""
    navigates = headers.get("sec-fetch-mode", "").lower() == "navigate"
    return (
        navigates
        and method in _SAFE_METHODS
        and headers.get("sec-fetch-dest", "document").lower() == "document"
    )


def _plain(host: str) -> str:
    return host.strip().strip("[]").rstrip(".").lower()


def _address(name: str) -> IPv4Address | IPv6Address | None:
    try:
        return ip_address(name)
    except ValueError:
        return None


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
    """Lets in who has a token, or signed in with one; probes and the documentation need none.

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
            session = session_token(scope) if not given else None
            if session is not None:
                given = [f"Bearer {session}"]
            caller = self._tokens.caller(given[0] if len(given) == 1 else None)
            if caller is None and (login := to_login(scope)) is not None:
                await login(scope, receive, send)
                return
            if caller is None:
                detail = "this needs `Authorization: Bearer` with a token of this API"
                refusal = Refusal(
                    401, "unauthorized", detail, headers={"WWW-Authenticate": 'Bearer realm="mloc"'}
                )
                await problem_response(refusal, scope["path"])(scope, receive, send)
                return
            scope[CALLER] = caller
        await self._app(scope, receive, send)
