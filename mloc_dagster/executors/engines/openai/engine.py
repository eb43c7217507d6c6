"""An endpoint as an engine: rows go out as they are, as many at a time as it may have."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from queue import Empty, SimpleQueue

from mloc_dagster.errors import MissingExtraError, TaskCancelled
from mloc_dagster.executors.engines.openai.answers import RefusedRowError
from mloc_dagster.executors.engines.openai.bodies import (
    Body,
    body_of,
    embedded_text,
    messages_of,
    refuse_extensions,
    server_of,
)
from mloc_dagster.executors.engines.openai.endpoint import (
    Endpoint,
    Link,
    Listener,
    UnansweredError,
    endpoint_host,
)
from mloc_dagster.executors.engines.openai.engine_type import OpenaiOptions
from mloc_dagster.executors.engines.protocol import (
    Completion,
    EngineLoader,
    EngineRequest,
    Rendered,
    Replies,
)
from mloc_dagster.executors.engines.turn import LOOK_EVERY_S
from mloc_dagster.executors.input_planning import estimate_tokens
from mloc_dagster.executors.prompts import RowBlock
from mloc_dagster.net import current_reach
from mloc_dagster.results import InputRow, ServerFault
from mloc_dagster.schema import Inference, ModelSpec, Pooling

_EXTRA = "endpoint"
_PLACE = "<image>"


_NO_MORE = object()


class OpenaiLoader(EngineLoader):
    """Finds out what an endpoint is; there is nothing to load."""

    def installed(self) -> bool:
        """Tells whether the `openai` package is there."""
        return find_spec("openai") is not None and find_spec("aiolimiter") is not None

    def obstacle(self, spec: ModelSpec) -> str | None:
        """Returns that the package is missing; None when it is there."""
        return None if self.installed() else str(MissingExtraError("asking an endpoint", _EXTRA))

    def load(self, spec: ModelSpec) -> OpenaiEngine:
        """Asks the endpoint for its models.

        Raises:
            MissingExtraError: If the package is not installed.
            InputError: If the task wants what the endpoint cannot follow.
            TerminalError: If it refuses the key.
            TransientError: If it is away.
        """
        if not self.installed():
            raise MissingExtraError("asking an endpoint", _EXTRA)
        engine = OpenaiEngine(spec)
        try:
            engine.greet(spec)
        except BaseException:
            engine.close()
            raise
        return engine


class OpenaiEngine:
    """A model of an endpoint. Threads may share it: shards and calls go out side by side.

    Args:
        spec: The task.
    """

    device = "remote"
    size_bytes = 0

    def __init__(self, spec: ModelSpec) -> None:
        source = spec.model.source
        self._options = spec.model.options("openai", OpenaiOptions)
        self._endpoint = Endpoint(source, self._options)
        self._source = source
        self.label = f"openai {version('openai')}"
        self.name = self._endpoint.name
        self.revision = source.revision or ""

    def greet(self, spec: ModelSpec) -> None:
        """Learns from the endpoint what it is, and whether it can do what a task wants.

        Raises:
            InputError: If it cannot.
            TerminalError: If it refuses the key.
            TransientError: If it is away.
        """
        link = self._endpoint.link(current_reach())
        told = self._endpoint.greet(link)
        host = endpoint_host(str(link.client.base_url))
        self._server = server_of(
            self.name, host, self._options, vllm=told.vllm, longest=told.longest
        )
        refuse_extensions(spec.row_block, self._server)
        self.revision = self.revision or told.root

    @property
    def longest(self) -> int | None:
        """Tokens that a prompt and its answer may have together; None where it does not tell."""
        return self._server.longest

    def render(self, row: InputRow, block: RowBlock) -> Rendered:
        """Returns a row as JSON: nothing is rendered here, and equal requests have equal text.

        Raises:
            ValueError: If the row cannot be put into a request.
        """
        if isinstance(block, Pooling):
            return Rendered(embedded_text(row, block))
        if not isinstance(block, Inference):
            raise ValueError("an endpoint scores no pairs of texts")  # noqa: TRY004
        pictures = iter(lambda: _PLACE, None)
        messages = messages_of(row, block, self._server, pictures)
        return Rendered(json.dumps(messages, ensure_ascii=False), special=False)

    def tokenize(self, texts: list[str], *, special: bool = True) -> list[list[int]]:
        """Returns as many ids as a text may have tokens, by its bytes: its tokenizer is away."""
        return [[int(special)] * estimate_tokens(text) for text in texts]

    def run(self, requests: Iterator[EngineRequest | None], replies: Replies) -> None:
        """Answers all requests, `max_concurrency` at a time.

        Raises:
            TaskCancelled: If the task was asked to stop; looked at ten times a second.
            TerminalError: If the endpoint refuses all requests.
            TransientError: If it is away.
        """
        before = self._endpoint.retries
        replies.log(
            f"endpoint: {self._endpoint.link(current_reach()).shown}, {self._server.dialect} "
            f"options, at most {self._options.max_concurrency} requests at a time; prompts are "
            "counted by the endpoint, and before that estimated by their length"
        )
        self._answer(requests, replies, self._options.max_concurrency)
        again = self._endpoint.retries - before
        if again:
            replies.log(f"{again} attempts more than requests: the endpoint was busy or failed")

    def call(self, requests: Sequence[EngineRequest], replies: Replies) -> None:
        """Answers requests beside those of shards, and before them.

        Raises:
            TaskCancelled: If nobody waits any more.
            TerminalError: If the endpoint refuses all requests.
            TransientError: If it is away.
        """
        self._answer(iter(requests), replies, max(1, len(requests)))

    def close(self) -> None:
        """Ends the connections."""
        self._endpoint.close()

    def _answer(
        self, requests: Iterator[EngineRequest | None], replies: Replies, most: int
    ) -> None:
        flight = _Flight(self._endpoint, self._endpoint.link(current_reach()), replies)
        watch = _Watch(replies.cancelled)
        more = True
        try:
            while more or flight.open:
                watch.look()
                while more and len(flight.open) < most and not flight.has_news:
                    request = next(requests, _NO_MORE)
                    if request is None:
                        break  # more will come
                    more = request is not _NO_MORE
                    if isinstance(request, EngineRequest):
                        self._send(request, flight)
                    watch.look()
                flight.listen()
        finally:
            flight.cancel()

    def _send(self, request: EngineRequest, flight: _Flight) -> None:
        try:
            body = body_of(request, self._server)
        except ValueError as error:
            flight.replies.failed(request, str(error))
        else:
            flight.send(request, body)


class _Watch:
    """Looks whether the task was cancelled, if that was some time ago."""

    def __init__(self, cancelled: Callable[[], bool]) -> None:
        self._cancelled = cancelled
        self._looked = 0.0

    def look(self) -> None:
        now = time.monotonic()
        if now - self._looked < LOOK_EVERY_S / 2:
            return
        self._looked = now
        if self._cancelled():
            raise TaskCancelled("stopped while the endpoint was asked")


class _Flight:
    """The requests of one run, or of one call, that are under way; replies in its own thread."""

    def __init__(self, endpoint: Endpoint, link: Link, replies: Replies) -> None:
        self.replies = replies
        self.open: dict[int, Future[Completion]] = {}
        self._endpoint = endpoint
        self._link = link
        self._news: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._number = 0

    @property
    def has_news(self) -> bool:
        return not self._news.empty()

    def send(self, request: EngineRequest, body: Body) -> None:
        number, self._number = self._number, self._number + 1
        tell, replies = self._news.put, self.replies
        listener = Listener(
            text=lambda answer, piece: tell(partial(replies.text, request, answer, piece)),
            log=lambda line: tell(partial(replies.log, line)),
        )
        future = self._endpoint.ask(self._link, body, request, listener)
        self.open[number] = future
        future.add_done_callback(lambda _: tell(partial(self._settle, number, request, future)))

    def listen(self) -> None:
        """Makes the replies that have come; waits for one where there is none."""
        try:
            self._news.get(timeout=LOOK_EVERY_S / 2 if self.open else 0)()
            while self.has_news:
                self._news.get()()
        except Empty:
            return

    def cancel(self) -> None:
        for future in self.open.values():
            future.cancel()

    def _settle(self, number: int, request: EngineRequest, future: Future[Completion]) -> None:
        del self.open[number]
        try:
            completion = future.result()
        except RefusedRowError as error:
            self.replies.failed(request, str(error))
        except UnansweredError as error:
            self.replies.failed(request, ServerFault(str(error)))
        else:
            self.replies.done(request, completion)
