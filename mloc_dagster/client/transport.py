"""Requests and answers: the API's address, the connection, and what is tried again."""

from __future__ import annotations

import ipaddress
from collections.abc import Awaitable, Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit

import httpx
from pydantic import ValidationError
from tenacity import (
    AsyncRetrying,
    RetryCallState,
    Retrying,
    retry_if_exception,
    stop_after_attempt,
    wait_random_exponential,
)

from mloc_dagster import __version__
from mloc_dagster.client.errors import ApiAwayError, ApiError, error_of
from mloc_dagster.errors import DataError, InputError
from mloc_dagster.settings import settings
from mloc_dagster.wire import Wire, tokens_in


@dataclass(frozen=True, slots=True)
class Address:
    """An API.

    Attributes:
        url: Its address.
        token: What it asks for; None leaves it to `MLOC_API_TOKEN`.
    """

    url: str
    token: str | None = None


def configured_url() -> str | None:
    """Returns the address that `MLOC_API_URL` names; None if it names none."""
    return settings().api_url or None


def default_address() -> Address:
    """Returns the API of `MLOC_API_URL`, else that of this home's stack, else this machine's."""
    url = configured_url()
    if url is not None:
        return Address(url)
    from mloc_dagster.services import reachable

    return stack_api() or Address(f"http://{reachable(settings().api_host)}:{settings().api_port}")


def stack_api() -> Address | None:
    """Returns the API of the stack that is up in `MLOC_HOME`; None if it has none.

    Where `MLOC_REDIS_URL` names a fleet, that is meant and not the stack.
    """
    if settings().redis_url is not None:
        return None
    from mloc_dagster.home import stack_layout, supervisor_process
    from mloc_dagster.services import saved_plan

    layout = stack_layout()
    plan = saved_plan(layout)
    supervisor = supervisor_process(layout)
    if plan is None or plan.api_url is None or supervisor is None:
        return None
    return Address(plan.api_url, _token(supervisor.environ()))


def _token(started_with: Mapping[str, str]) -> str | None:
    if settings().api_token is not None:
        return None
    file = started_with.get("MLOC_API_TOKEN_FILE")
    if file is None:
        return started_with.get("MLOC_API_TOKEN")
    return next(iter(tokens_in(Path(file).read_text(encoding="utf-8"))), None)


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


_EXAMPLE = "http://127.0.0.1:8000"
_CONNECT_TIMEOUT_S = 5.0
# Nothing of these has reached the API.
_NOT_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)


class Connection:
    """An address, a token and patience.

    Args:
        url: The API's address; by default `client.transport` says where.
        token: By default `MLOC_API_TOKEN`, else that of this home's stack; an empty one is none.
        timeout_s: How long the API may be silent.

    Attributes:
        url: The address.
        timeout_s: The patience.

    Raises:
        InputError: If the address or the token is none.
    """

    def __init__(self, url: str | None, token: str | None, timeout_s: float) -> None:
        place = Address(url, token) if url else default_address()
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


_backoff = wait_random_exponential(multiplier=0.25, max=5.0)


def retrying(repeatable: bool, attempts: int, pause: Callable[[float], None]) -> Retrying:
    """Returns what tries a request several times.

    Args:
        repeatable: Whether asking twice does no more than asking once.
        attempts: How often at most.
        pause: Waits so many seconds.
    """
    return Retrying(
        retry=retry_if_exception(lambda error: _may_retry(error, repeatable)),
        stop=stop_after_attempt(attempts),
        wait=_wait,
        sleep=pause,
        reraise=True,
    )


def async_retrying(
    repeatable: bool, attempts: int, pause: Callable[[float], Awaitable[None]]
) -> AsyncRetrying:
    """Returns the same for coroutines."""
    return AsyncRetrying(
        retry=retry_if_exception(lambda error: _may_retry(error, repeatable)),
        stop=stop_after_attempt(attempts),
        wait=_wait,
        sleep=pause,
        reraise=True,
    )


def _may_retry(error: BaseException, repeatable: bool) -> bool:
    return isinstance(error, ApiAwayError) and (repeatable or not error.perhaps_done)


def _wait(state: RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome is not None else None
    asked = error.retry_after_s if isinstance(error, ApiAwayError) else None
    return _backoff(state) if asked is None else asked
