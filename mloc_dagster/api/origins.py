"""Requests that a page of another site makes a browser send are refused.

A browser sends requests to `127.0.0.1` for any page that asks it to, and asks the server first only
where a method, a header or a content type is unusual. What a page cannot change says where a
request comes from: `Host`, `Origin`, `Sec-Fetch-Site`. Programs such as curl send neither of the
last two, and may do what they like.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from mloc_dagster.api.problems import Refusal, problem_response

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
