"""Asking an endpoint: what is sent again, what ends a row, and what ends the task.

The `openai` package sends a request again after 408, 409, 429, a 5xx and a broken connection, and
obeys `Retry-After` up to two minutes. What it gives up is judged here.
"""

from __future__ import annotations

import asyncio
import email.utils
import math
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from mloc_dagster.errors import InputError, TerminalError, TransientError, nearest_hint
from mloc_dagster.executors.engines.openai.answers import (
    OddReplyError,
    RefusedRowError,
    completion_of,
    usage_of,
)
from mloc_dagster.executors.engines.openai.bodies import Body
from mloc_dagster.executors.engines.openai.engine_type import OpenaiOptions
from mloc_dagster.executors.engines.openai.traffic import LoopThread, Places, Rates
from mloc_dagster.executors.engines.protocol import Completion, EngineRequest
from mloc_dagster.executors.input_planning import estimate_tokens
from mloc_dagster.net import LOCAL, OutOfReachError, Reach, current_reach
from mloc_dagster.redaction import MASK, redact
from mloc_dagster.schema import ModelSource

if TYPE_CHECKING:
    from openai import APIStatusError, AsyncOpenAI

PATIENCE_S = 600.0
"""Seconds in which no request at all is answered, until an endpoint that says 429 is given up."""

LONGEST_PAUSE_S = 3600.0
_USUAL_PAUSE_S = 30.0

MOST_UNANSWERED = 3
"""Rows in a row that may fail by the endpoint's fault while it says that it is well."""

_GREETING_S = 30.0
_BROKE = frozenset({"insufficient_quota", "billing_hard_limit_reached", "billing_not_active"})
_SHORTEST_SECRET = 4
_MOST_CHARACTERS = 2000


class UnansweredError(Exception):
    """A row that has no answer by the endpoint's fault, while others have one."""


@dataclass(frozen=True, slots=True)
class Link:
    """An endpoint as one task may ask it.

    Attributes:
        client: Sends requests.
        shown: Its address, for messages.
        secrets: Texts that no message may have.
    """

    client: AsyncOpenAI
    shown: str
    secrets: tuple[str, ...]

    def clean(self, text: str) -> str:
        """Returns a text without secrets: an endpoint may quote what it was sent."""
        for each in self.secrets:
            text = text.replace(each, MASK)
        return redact(text)[:_MOST_CHARACTERS]


@dataclass(frozen=True, slots=True)
class Told:
    """What an endpoint says of its models.

    Attributes:
        names: What it calls them; empty where it does not say.
        root: What the asked one is, if it says more than its name.
        longest: Tokens that its prompt and answer may have.
        vllm: It takes the options of vLLM's server.
    """

    names: tuple[str, ...] = ()
    root: str = ""
    longest: int | None = None
    vllm: bool = False


@dataclass(slots=True)
class Listener:
    """Who is told what happens to a request; called in the endpoint's own thread.

    Attributes:
        text: Takes each piece of an answer, with the answer's number.
        log: Takes lines for the task's log.
    """

    text: Callable[[int, str], None]
    log: Callable[[str], None]


@dataclass(slots=True)
class _Health:
    """What the endpoint did lately."""

    answered: int = 0
    answered_at: float = -math.inf
    unanswered: int = 0
    resumes_at: float = 0.0
    fingerprint: str = ""
    told_no_usage: bool = False
    retries: int = 0


class Endpoint:
    """One model of an endpoint, with all that this process asks of it.

    Args:
        source: Where it is, and what it is called.
        options: How it is asked.

    Attributes:
        name: What the endpoint calls the model.

    Raises:
        OutOfReachError: If the task may not have a variable in the model's name.
        InputError: If one is not set.
    """

    def __init__(self, source: ModelSource, options: OpenaiOptions) -> None:
        self._source = source
        self.name = current_reach().filled_in(source.identifier)
        self._options = options
        self._loop = LoopThread()
        self._places = Places(options.max_concurrency)
        self._rates = Rates(options.requests_per_minute, options.tokens_per_minute)
        self._links: dict[tuple[object, ...], Link] = {}
        self._health = _Health()
        self._told = Told()

    @property
    def retries(self) -> int:
        """How many requests were sent again."""
        return self._health.retries

    def link(self, reach: Reach) -> Link:
        """Returns the endpoint as a task may ask it, with the secrets that it may have.

        Raises:
            OutOfReachError: If the task may not ask it, or not have a variable.
            InputError: If a variable is not set, or what it holds is of no use.
        """
        source, given = self._source, self._options.default_headers
        reach.check_endpoint(source.base_url or "")
        reach.check_variables(source.identifier)  # another task's reach may have filled it in
        url = reach.filled_in(source.base_url or "")
        _check_address(url)
        api_key = None if source.api_key is None else source.api_key.get_secret_value()
        key = reach.endpoint_key(source.base_url or "", api_key)
        headers = {name: reach.filled_in(each.get_secret_value()) for name, each in given.items()}
        _check_headers({"model.source.api_key": key or "", **headers})
        identity = (url, key, *headers.items())
        if identity not in self._links:
            secrets = [key or "", *headers.values()]
            self._links[identity] = Link(
                _client(url, key, headers, self._options),
                redact(url),
                tuple(each for each in secrets if len(each) >= _SHORTEST_SECRET),
            )
        return self._links[identity]

    def greet(self, link: Link) -> Told:
        """Returns what the endpoint says of its models; nothing where it has no list of them.

        Raises:
            TerminalError: If it refuses the key.
            TransientError: If it is away.
        """
        self._told = self._loop.submit(self._greet(link)).result()
        return self._told

    def ask(
        self, link: Link, body: Body, request: EngineRequest, listener: Listener
    ) -> Future[Completion]:
        """Asks; returns the answer's future, which raises what `_ask` does."""
        return self._loop.submit(self._ask(link, body, request, listener))

    def close(self) -> None:
        """Ends what is in flight, the connections and the thread."""
        for link in self._links.values():
            self._loop.submit(link.client.close()).result()
        self._links.clear()
        self._loop.close()

    async def _ask(
        self, link: Link, body: Body, request: EngineRequest, listener: Listener
    ) -> Completion:
        """Returns the answer.

        Raises:
            RefusedRowError: If the endpoint refuses this row.
            UnansweredError: If it has no answer to this one, and is there for others.
            TerminalError: If it will answer none.
            TransientError: If it is away.
        """
        began = time.monotonic()
        await self._rates.wait(_tokens_asked_for(request))
        async with self._places.taken(urgent=request.urgent):
            start = self._places.tick()
            try:
                reply = await self._reply(link, body, request, listener, began)
                engine_s = self._places.tick() - start
                usage = usage_of(reply, request, estimate_tokens)
                completion = completion_of(
                    reply,
                    request,
                    usage,
                    engine_s=engine_s,
                    latency_s=time.monotonic() - began,
                )
            except OddReplyError as error:
                reason = f"{link.shown} sent no answer of the API: {error}"
                raise UnansweredError(link.clean(reason)) from None
            except RefusedRowError as error:
                raise RefusedRowError(link.clean(str(error))) from None
        self._note(reply, listener, estimated=usage.estimated)
        return completion

    async def _reply(
        self,
        link: Link,
        body: Body,
        request: EngineRequest,
        listener: Listener,
        began: float,
    ) -> Any:
        import openai

        health = self._health
        while True:
            while (pause_s := health.resumes_at - time.monotonic()) > 0:
                await asyncio.sleep(pause_s)
            try:
                if request.stream and body.path != "embeddings":
                    return await _streamed(link.client, body, listener.text)
                raw = await _sent(link.client, body)
                health.retries += raw.retries_taken
                return raw.parse()
            except openai.RateLimitError as error:
                self._wait_for_room(link, error, listener, began)
            except openai.APIStatusError as error:
                await self._judge(link, error, body, began)
            except (openai.OpenAIError, *_transport_errors()) as error:
                await self._unanswered(link, _cause(error, self._options.timeout), began)

    def _wait_for_room(
        self, link: Link, error: APIStatusError, listener: Listener, began: float
    ) -> None:
        """Stops all requests until the endpoint takes more; the package has given up by now."""
        health, now = self._health, time.monotonic()
        said = _said(error)
        if error.code in _BROKE:
            raise TerminalError(link.clean(f"{link.shown} says that no credit is left: {said}"))
        if now - max(began, health.answered_at) > PATIENCE_S:
            raise TransientError(
                link.clean(f"{link.shown} has taken no request for {PATIENCE_S:.0f} s: {said}")
            )
        asked = _retry_after(error.response.headers)
        pause_s = _USUAL_PAUSE_S if asked is None else min(max(asked, 0.05), LONGEST_PAUSE_S)
        if now + pause_s > health.resumes_at:
            health.resumes_at = now + pause_s
            listener.log(link.clean(f"the endpoint asks to wait {pause_s:.3g} s: {said}"))

    async def _judge(self, link: Link, error: APIStatusError, body: Body, began: float) -> None:
        """Raises what a refusal means."""
        status, said = error.status_code, _said(error)
        where = f"{link.shown} answered {status}"
        if status == 401 or status == 402:
            key = "" if link.secrets else " (no model.source.api_key was sent)"
            raise TerminalError(link.clean(f"{where}{key}: {said}"))
        if status < 400:
            raise TerminalError(
                link.clean(f"{where}, a redirect, and none is followed: name the final address")
            )
        if status in (403, 404) and not self._health.answered:
            name = self.name
            known = [each for each in self._told.names if each != name]
            hint = nearest_hint(name, known) if name not in self._told.names else ""
            what = f" to the model {name!r}{hint}" if status == 404 else ""
            raise TerminalError(link.clean(f"{where}{what}: {said}"))
        if status >= 500 or status in (408, 409):
            await self._unanswered(link, f"{where}: {said}", began)
        raise RefusedRowError(link.clean(f"{where} on /{body.path}: {said}"))

    async def _unanswered(self, link: Link, why: str, began: float) -> None:
        """Raises what it means that a request has no answer after all attempts."""
        health = self._health
        text = link.clean(f"{why} ({self._options.max_retries + 1} attempts)")
        if health.answered_at > began:
            raise UnansweredError(text)
        health.unanswered += 1
        if health.unanswered <= MOST_UNANSWERED and await self._is_there(link):
            raise UnansweredError(text)
        raise TransientError(f"{link.shown} does not answer: {text}")

    async def _is_there(self, link: Link) -> bool:
        import openai

        try:
            await link.client.with_options(
                max_retries=0, timeout=_GREETING_S
            ).models.with_raw_response.list()
        except openai.APIStatusError as error:
            return error.status_code < 500
        except (openai.OpenAIError, *_transport_errors()):
            return False
        return True

    async def _greet(self, link: Link) -> Told:
        import openai

        patient = link.client.with_options(timeout=min(self._options.timeout, _GREETING_S))
        try:
            found = (await patient.models.list()).data or []
        except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
            if error.status_code == 401:
                await self._judge(link, error, Body("chat", {}), 0.0)
            return Told()  # some keys may ask models and not list them
        except openai.APIStatusError as error:
            if error.status_code < 400:
                await self._judge(link, error, Body("chat", {}), 0.0)
            if error.status_code >= 500:
                text = link.clean(f"{link.shown} answered {error.status_code}: {_said(error)}")
                raise TransientError(text) from None
            return Told()
        except (openai.OpenAIError, *_transport_errors()) as error:
            why = link.clean(_cause(error, min(self._options.timeout, _GREETING_S)))
            raise TransientError(f"{link.shown} does not answer: {why}") from None
        except (AttributeError, TypeError, ValueError):
            return Told()  # it has an answer of its own to this
        return _told(found, self.name)

    def _note(self, reply: Any, listener: Listener, *, estimated: bool) -> None:
        health = self._health
        health.answered += 1
        health.answered_at = time.monotonic()
        health.unanswered = 0
        fingerprint = getattr(reply, "system_fingerprint", None) or ""
        if fingerprint and fingerprint != health.fingerprint:
            before = f", before {health.fingerprint}" if health.fingerprint else ""
            listener.log(f"the endpoint's system_fingerprint: {fingerprint}{before}")
            health.fingerprint = fingerprint
        if estimated and not health.told_no_usage:
            health.told_no_usage = True
            listener.log("the endpoint tells no usage: tokens are estimated, 4 bytes each")


def _client(
    url: str, key: str | None, headers: Mapping[str, str], options: OpenaiOptions
) -> AsyncOpenAI:
    import openai

    keyless = key is None and "authorization" not in map(str.lower, headers)
    # What the package would take from the environment was not meant for this endpoint.
    client = openai.AsyncOpenAI(
        base_url=url,
        api_key=key or "none",
        admin_api_key="",
        organization="",
        project="",
        webhook_secret="",
        timeout=options.timeout,
        max_retries=options.max_retries,
        default_headers=headers,
        http_client=openai.DefaultAsyncHttpxClient(
            follow_redirects=False, event_hooks={"request": [_drop_key] if keyless else []}
        ),
    )
    client.organization = client.project = None
    return client


async def _drop_key(request: Any) -> None:
    del request.headers["Authorization"]  # the package sends none only request by request


async def _sent(client: AsyncOpenAI, body: Body) -> Any:
    fields = dict(body.fields)
    match body.path:
        case "chat":
            calls: Any = client.chat.completions.with_raw_response
            named = {"messages": fields.pop("messages")}
        case "completions":
            calls = client.completions.with_raw_response
            named = {"prompt": fields.pop("prompt")}
        case "embeddings":
            calls = client.embeddings.with_raw_response
            named = {name: fields.pop(name) for name in ("input", "encoding_format")}
    return await calls.create(model=fields.pop("model"), **named, extra_body=fields)


async def _streamed(client: AsyncOpenAI, body: Body, say: Callable[[int, str], None]) -> Any:
    """Returns the whole answer of a streamed request, each piece of which was said before.

    Raises:
        OddReplyError: If it broke off.
    """
    fields = dict(body.fields)
    how: dict[str, Any] = {
        "model": fields.pop("model"),
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if body.path == "completions":
        return await _streamed_text(client, how | {"prompt": fields.pop("prompt")}, fields, say)
    from openai.lib.streaming.chat import ChatCompletionStreamState

    whole: Any = ChatCompletionStreamState()
    how["messages"] = fields.pop("messages")
    chunks: Any = await client.chat.completions.create(**how, extra_body=fields)
    begun = False
    async for chunk in chunks:
        whole.handle_chunk(chunk)
        begun = True
        for choice in chunk.choices:
            if choice.delta.content:
                say(choice.index, choice.delta.content)
    if not begun:
        raise OddReplyError("an empty stream")
    reply = whole.current_completion_snapshot
    if any(not each.finish_reason for each in reply.choices):
        raise OddReplyError("a stream that broke off")
    return reply


async def _streamed_text(
    client: AsyncOpenAI,
    how: dict[str, Any],
    fields: Mapping[str, Any],
    say: Callable[[int, str], None],
) -> Any:
    chunks: Any = await client.completions.create(**how, extra_body=fields)
    whole: Any = None
    choices: dict[int, Any] = {}
    usage: Any = None
    async for chunk in chunks:
        whole, usage = chunk, chunk.usage or usage
        for each in chunk.choices:
            if each.text:
                say(each.index, each.text)
            known = choices.get(each.index)
            choices[each.index] = each if known is None else _joined(known, each)
    if whole is None or any(not each.finish_reason for each in choices.values()):
        raise OddReplyError("a stream that broke off")
    return whole.model_copy(update={"choices": list(choices.values()), "usage": usage})


def _joined(known: Any, more: Any) -> Any:
    logprobs = known.logprobs
    if logprobs is not None and more.logprobs is not None:
        lists = ("tokens", "token_logprobs", "top_logprobs")
        joined = {
            name: [*(getattr(logprobs, name) or ()), *(getattr(more.logprobs, name) or ())]
            for name in lists
        }
        logprobs = logprobs.model_copy(update=joined)
    return more.model_copy(
        update={
            "text": known.text + (more.text or ""),
            "finish_reason": more.finish_reason or known.finish_reason,
            "logprobs": logprobs if logprobs is not None else more.logprobs,
        }
    )


def _told(found: Sequence[Any], name: str) -> Told:
    owners = {getattr(each, "owned_by", None) for each in found}
    asked = next((each for each in found if each.id == name), None)
    longest = getattr(asked, "max_model_len", None)
    root = getattr(asked, "root", None)
    return Told(
        tuple(each.id for each in found),
        root if isinstance(root, str) and root != name else "",
        longest if isinstance(longest, int) else None,
        bool(owners & {"vllm", "mloc"}),
    )


def _tokens_asked_for(request: EngineRequest) -> int:
    block = request.sampling
    answers = 0 if block is None else block.max_tokens * block.draws
    return len(request.tokens) + answers


def _said(error: APIStatusError) -> str:
    """Returns what the endpoint says of an error, in one line."""
    body: Any = error.body
    inner = body.get("error", body) if isinstance(body, dict) else body
    said = inner.get("message") if isinstance(inner, dict) else inner
    return " ".join(str(said or error.message).split())[:_MOST_CHARACTERS]


def _cause(error: BaseException, timeout_s: float) -> str:
    import openai

    if isinstance(error, openai.APITimeoutError):
        return f"no answer within {timeout_s:g} s"
    cause = error.__cause__ or error
    return f"{type(cause).__name__}: {cause}".removesuffix(": ")


def _transport_errors() -> tuple[type[Exception], ...]:
    """Returns what breaks in the middle of a stream, which the package passes on as it is."""
    import httpx2

    return (httpx2.HTTPError, httpx2.StreamError)


def _retry_after(headers: Any) -> float | None:
    for name, unit in (("retry-after-ms", 1000), ("retry-after", 1)):
        try:
            return float(headers[name]) / unit
        except (KeyError, ValueError):
            continue
    try:
        return email.utils.parsedate_to_datetime(headers["retry-after"]).timestamp() - time.time()
    except (KeyError, ValueError, TypeError):
        return None


def _check_address(url: str) -> None:
    host = endpoint_host(url)
    if not url.startswith(("http://", "https://")) or not host:
        raise InputError("model.source.base_url is no HTTP URL once filled in")
    # Private addresses are allowed: the operator, or who runs the task here, has named this one.
    if (why := LOCAL.why_host_refused(host)) is not None:
        raise OutOfReachError(f"model.source.base_url: {why}")


def _check_headers(values: Mapping[str, str]) -> None:
    """Refuses what HTTP does not carry: its library would quote the value in its error."""
    for name, value in values.items():
        if not value.isascii() or (value and not value.isprintable()) or value != value.strip():
            raise TerminalError(
                f"{name} has a line break, a space at an end, or a character that HTTP does not "
                "carry"
            )


def endpoint_host(url: str) -> str:
    """Returns the host of an address; empty where there is none."""
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""
