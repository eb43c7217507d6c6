"""The client of the HTTP API."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import wraps
from pathlib import Path
from types import TracebackType
from typing import Concatenate, Self

import httpx

import mloc_dagster.client.operations as operations
from mloc_dagster.client.errors import ApiAwayError
from mloc_dagster.client.paging import Walk
from mloc_dagster.client.streams import Download, Flow
from mloc_dagster.client.transport import Ask, Call, Connection, check, retrying


def _calls[**P, ReplyT](
    describe: Callable[P, Call[ReplyT]],
) -> Callable[Concatenate[Client, P], ReplyT]:
    @wraps(describe)
    def method(client: Client, *args: P.args, **kwargs: P.kwargs) -> ReplyT:
        return client.do(describe(*args, **kwargs))

    return method


def _yields[**P, PageT, ItemT](
    describe: Callable[P, Walk[PageT, ItemT] | Flow[ItemT]],
) -> Callable[Concatenate[Client, P], Iterator[ItemT]]:
    @wraps(describe)
    def method(client: Client, *args: P.args, **kwargs: P.kwargs) -> Iterator[ItemT]:
        found = describe(*args, **kwargs)
        return client.go(found) if isinstance(found, Walk) else client.read(found)

    return method


def _collects[**P, PageT, ItemT](
    describe: Callable[P, Walk[PageT, ItemT]],
) -> Callable[Concatenate[Client, P], tuple[ItemT, ...]]:
    @wraps(describe)
    def method(client: Client, *args: P.args, **kwargs: P.kwargs) -> tuple[ItemT, ...]:
        return tuple(client.go(describe(*args, **kwargs)))

    return method


def _saves[**P](
    describe: Callable[P, Download],
) -> Callable[Concatenate[Client, P], Path]:
    @wraps(describe)
    def method(client: Client, *args: P.args, **kwargs: P.kwargs) -> Path:
        with describe(*args, **kwargs) as download:
            for _ in client.read(download):
                pass
        return download.target

    return method


class Client:
    """Talks to an mloc API. Thread-safe; a context manager that closes its connections.

    Calls that may be repeated, submissions among them, are tried again while the API does not
    answer or says that it cannot now (503).

    Args:
        url: The API's address; by default `MLOC_API_URL`, else that of the stack which is up in
            `MLOC_HOME`, else port `MLOC_API_PORT` (8000) of this machine.
        token: By default `MLOC_API_TOKEN`, else that of the stack; an empty one is none.
        timeout_s: How long the API may be silent.
        attempts: How often a call is tried at most; with the default for about 20 s.
        transport: Instead of the network, such as `httpx.MockTransport`.
        pause: Waits so many seconds.

    Raises:
        InputError: If the address or the token is none.
    """

    def __init__(
        self,
        url: str | None = None,
        token: str | None = None,
        *,
        timeout_s: float = 60.0,
        attempts: int = 8,
        transport: httpx.BaseTransport | None = None,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self._connection = Connection(url, token, timeout_s)
        self._attempts = attempts
        self._pause = pause
        self._http = httpx.Client(
            headers=self._connection.headers,
            transport=transport,
            trust_env=self._connection.uses_proxies,
        )

    def __repr__(self) -> str:
        return f"Client({self.url!r})"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Closes the connections."""
        self.close()

    @property
    def url(self) -> str:
        """The API's address."""
        return self._connection.url

    def close(self) -> None:
        """Closes the connections."""
        self._http.close()

    submit = _calls(operations.submit)
    wait = _collects(operations.wait)
    list = _yields(operations.tasks)
    show = _calls(operations.show)
    workflow = _calls(operations.workflow)
    look = _calls(operations.look)
    logs = _yields(operations.logs)
    chat = _yields(operations.chat)
    progress = _calls(operations.progress)
    cancel = _calls(operations.cancel)
    retry = _calls(operations.retry)
    result = _calls(operations.result)
    rows = _yields(operations.rows)
    save_result = _saves(operations.save_result)
    save_file = _saves(operations.save_file)
    save_bundle = _saves(operations.save_bundle)
    put_result = _calls(operations.put_result)
    files = _calls(operations.files)
    trajectory = _calls(operations.trajectory)
    upload = _calls(operations.upload)
    dead_letters = _yields(operations.dead_letters)
    indexes = _calls(operations.indexes)
    index = _calls(operations.index)
    search_index = _calls(operations.search_index)
    drop_index = _calls(operations.drop_index)
    workers = _calls(operations.workers)
    worker = _calls(operations.worker)
    cleanup = _calls(operations.cleanup)
    health = _calls(operations.health)
    readiness = _calls(operations.readiness)
    metrics = _calls(operations.metrics)

    def do[ReplyT](self, call: Call[ReplyT]) -> ReplyT:
        """Makes a call of `client.operations`.

        Raises:
            ApiError: If it failed; see `client.errors`.
        """
        return call.reply(self._send(call, stream=False))

    def go[ReplyT, ItemT](self, walk: Walk[ReplyT, ItemT]) -> Iterator[ItemT]:
        """Makes calls that follow from each other, and yields what they bring."""
        while (call := walk.call()) is not None:
            yield from walk.take(self.do(call))
            if walk.pause_s:
                self._pause(walk.pause_s)

    def read[ItemT](self, flow: Flow[ItemT]) -> Iterator[ItemT]:
        """Reads a long answer, and yields what it brings as it comes."""
        while not flow.done:
            response, pause_s = self._send(flow.ask(), stream=True), 0.0
            try:
                with self._connection.translated():
                    flow.begin(response)
                    for block in response.iter_bytes():
                        yield from flow.feed(block)
                        if flow.done:
                            break
                    yield from flow.end()
            except ApiAwayError as error:
                pause_s = flow.broken(error)
            finally:
                response.close()
            if pause_s:
                self._pause(pause_s)

    def _send(self, ask: Ask, *, stream: bool) -> httpx.Response:
        attempt = retrying(ask.repeatable, self._attempts, self._pause)
        return attempt(self._send_once, ask, stream)

    def _send_once(self, ask: Ask, stream: bool) -> httpx.Response:
        with ask.opened() as parts, self._connection.translated():
            request = self._connection.request(self._http, ask, parts)
            response = self._http.send(request, stream=stream)
            if stream and not response.is_success:
                response.read()
        check(response, ask)
        return response
