"""Where the API is and how it is asked; what both clients have in common."""

from __future__ import annotations

import ipaddress
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from urllib.parse import urlsplit

import httpx

from mloc_dagster import __version__
from mloc_dagster.client.call import Ask, OpenPart
from mloc_dagster.client.errors import ApiAwayError, error_of
from mloc_dagster.client.place import Place, default_place
from mloc_dagster.errors import InputError
from mloc_dagster.settings import settings

_EXAMPLE = "http://127.0.0.1:8000"
_CONNECT_TIMEOUT_S = 5.0
# Nothing of these has reached the API.
_NOT_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)


class Connection:
    """An address, a token and patience.

    Args:
        url: The API's address; by default `client.place` says where.
        token: By default `MLOC_API_TOKEN`, else that of this home's stack; an empty one is none.
        timeout_s: How long the API may be silent.

    Attributes:
        url: The address.
        timeout_s: The patience.

    Raises:
        InputError: If the address or the token is none.
    """

    def __init__(self, url: str | None, token: str | None, timeout_s: float) -> None:
        place = Place(url, token) if url else default_place()
        self.url = _checked_url(place.url)
        self.timeout_s = timeout_s
        given = place.token if token is None else token
        self._token = _checked_token(_default_token() if given is None else given)

    def __repr__(self) -> str:
        return f"Connection({self.url!r})"

    @property
    def headers(self) -> dict[str, str]:
        """What every request carries; httpx never shows `Authorization`."""
        authorization = {"Authorization": f"Bearer {self._token}"} if self._token else {}
        return {"User-Agent": f"mloc/{__version__}", **authorization}

    @property
    def timeout(self) -> httpx.Timeout:
        """How long a connection, and each silence, may take."""
        return httpx.Timeout(self.timeout_s, connect=min(self.timeout_s, _CONNECT_TIMEOUT_S))

    @property
    def uses_proxies(self) -> bool:
        """Whether the environment's proxies may be on the way: they are for other machines."""
        host = urlsplit(self.url).hostname or ""
        try:
            return not ipaddress.ip_address(host).is_loopback
        except ValueError:
            return host != "localhost"

    def request(
        self, client: httpx.Client | httpx.AsyncClient, ask: Ask, parts: Sequence[OpenPart]
    ) -> httpx.Request:
        """Returns a request as httpx has it."""
        timeout = self.timeout
        if ask.timeout_s is not None:
            timeout.read = ask.timeout_s
        return client.build_request(
            ask.method,
            f"{self.url}{ask.path}",
            params=list(ask.query) or None,
            headers=dict(ask.headers),
            content=ask.content,
            files=list(parts) or None,
            timeout=timeout,
        )

    @contextmanager
    def translated(self) -> Generator[None]:
        """Turns failures of the network into errors of mloc.

        Raises:
            ApiAwayError: If nobody answers, or not to the end.
        """
        try:
            yield
        except _NOT_SENT as error:
            raise ApiAwayError(
                f"no API answers at {self.url} ({_reason(error)}): start it with `mloc up`, or "
                "set MLOC_API_URL",
                perhaps_done=False,
            ) from error
        except httpx.RequestError as error:
            raise ApiAwayError(f"the API at {self.url} broke off: {_reason(error)}") from error


def check(response: httpx.Response, ask: Ask) -> None:
    """Raises what an answer means that is no success; it must have been read."""
    if not response.is_success and response.status_code not in ask.accepts:
        raise error_of(response, ask.shown_file)


def _reason(error: httpx.RequestError) -> str:
    return str(error) or type(error).__name__


def _default_token() -> str:
    token = settings().api_token
    return "" if token is None else token.get_secret_value()


def _checked_url(url: str) -> str:
    parts = urlsplit(url)
    if parts.username or parts.password:
        raise InputError("the API's address holds a name or a password: give it a token instead")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InputError(f"{url!r} is no address of an API: expected one such as {_EXAMPLE}")
    return url.rstrip("/")


def _checked_token(token: str) -> str:
    # httpx would quote the value in its error.
    if token and not (token.isascii() and token.isprintable() and " " not in token):
        raise InputError(
            "MLOC_API_TOKEN has a space, a line break or a character that HTTP does not carry"
        )
    return token
