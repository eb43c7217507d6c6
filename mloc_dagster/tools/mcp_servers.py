"""The tools of an MCP server, which is started again when it dies."""

from __future__ import annotations

import asyncio
import logging
import re
import signal
import sys
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import PurePath
from typing import Any, TextIO

import httpx2
from fastmcp.client import Client
from fastmcp.client.transports import ClientTransport, StdioTransport, StreamableHttpTransport
from fastmcp.exceptions import ToolError
from mcp.shared.exceptions import MCPError
from mcp_types import CONNECTION_CLOSED
from pydantic_ai import RunContext
from pydantic_ai.mcp import TOOL_SCHEMA_VALIDATOR, MCPToolset
from pydantic_ai.tools import ToolDefinition
from pydantic_ai.toolsets import AbstractToolset, ToolsetTool

from mloc_dagster.errors import InputError, TerminalError, TransientError, nearest_hint
from mloc_dagster.net import current_reach
from mloc_dagster.redaction import redact
from mloc_dagster.schema import McpTool
from mloc_dagster.tools.checks import filled, filled_words, mcp_secrets
from mloc_dagster.tools.context import bare_context
from mloc_dagster.tools.error_output import ErrorOutput
from mloc_dagster.tools.failure import Patience, ToolFailure
from mloc_dagster.tools.idempotency import META, idempotency_key
from mloc_dagster.tools.web import check_host, http_client

START_TIMEOUT_S = 60.0
"""A server may install itself first, as `uvx` does."""

MOST_STARTS = 5
"""Starts in a row without a call that was answered, after which a server is given up."""

_NUMBER = re.compile(r"\d+")
"""Times and process ids differ in errors that are the same."""

# Ends with us also where we are killed and the server does not look at its input.
_END_WITH_PARENT = (
    "import ctypes,os,sys;"
    f"ctypes.CDLL(None).prctl(1,{signal.SIGKILL.value});"
    "os.execvp(sys.argv[1],sys.argv[1:])"
)


@asynccontextmanager
async def open_server(
    server: McpTool,
    prefix: str | None,
    patience: Patience,
    log: Callable[[str], None],
    *,
    repeats: bool,
) -> AsyncGenerator[AbstractToolset[Any]]:
    """Starts a server and yields its tools.

    Args:
        server: The server.
        prefix: What stands before the names of its tools.
        patience: How long a call may take, without the time in which the server starts.
        log: Takes what a program writes to its standard error, line by line.
        repeats: Whether a call that the server ended during is made once more.

    Raises:
        TransientError: If it does not start or does not answer.
        TerminalError: If it is a program that ends at once, twice with the same error.
        InputError: If it has no tool of a name that is allowed.
    """
    async with AsyncExitStack() as stack:
        shown = prefix or _short(server)
        stack.enter_context(_warnings_to(log))
        errors = None
        if server.url is not None:
            transport = _over_http(server)
        else:
            errors = ErrorOutput(log, f"mcp {shown}: ", mcp_secrets(server))
            transport = _program(server, stack.enter_context(errors.file))
        toolset = McpServerToolset(
            transport, f"the MCP server {shown!r}", patience, errors, repeats=repeats
        )
        stack.push_async_callback(toolset.close)
        await toolset.open(server.allow, prefix)
        yield toolset


class McpServerToolset(AbstractToolset[Any]):
    """Calls the tools of a server; the list of its tools is what it was at the start.

    Args:
        transport: Makes a way to a server that starts it, if it is a program.
        shown: What it is called in messages.
        patience: How long a call may take.
        errors: What it says, if it is a program.
        repeats: Whether a call that the server ended during is made once more.
    """

    def __init__(
        self,
        transport: Callable[[], ClientTransport],
        shown: str,
        patience: Patience,
        errors: ErrorOutput | None,
        *,
        repeats: bool,
    ) -> None:
        self._transport = transport
        self._name = shown
        self._patience = patience
        self._errors = errors
        self._repeats = repeats
        self._names: dict[str, str] = {}
        self._definitions: dict[str, ToolDefinition] = {}
        self._starting: asyncio.Task[MCPToolset[Any]] | None = None
        self._ending: set[asyncio.Task[None]] = set()
        self._starts = 0
        self._closing = False

    @property
    def id(self) -> str | None:
        """No identity: nothing is told apart by it."""
        return None

    async def open(self, allow: tuple[str, ...] | None, prefix: str | None) -> None:
        """Starts the server and reads which tools it has."""
        found = await self._found_tools()
        for wanted in allow or ():
            if wanted not in found:
                hint = nearest_hint(wanted, found)
                raise InputError(f"{self._name} has no tool {wanted!r}{hint}")
        for name in allow or found:
            shown = f"{prefix}_{name}" if prefix else name
            definition = found[name].tool_def
            self._names[shown] = name
            self._definitions[shown] = ToolDefinition(
                name=shown,
                description=definition.description,
                parameters_json_schema=definition.parameters_json_schema,
            )

    async def _found_tools(self) -> dict[str, ToolsetTool[Any]]:
        """Returns the tools that the server has; a program that ends at once is tried twice."""
        earlier = None
        while True:
            try:
                toolset = await self._running()
                return await toolset.get_tools(bare_context())
            except Exception as error:
                said = await self._why(error)
                message = f"{self._name} does not start: {said}"
                if self._errors is None or not _has_ended(error):
                    raise TransientError(message) from error
                same = _NUMBER.sub("", said)
                if same == earlier:
                    raise TerminalError(f"{message}; a second start ended the same way") from error
                if earlier is not None:
                    raise TransientError(message) from error
                earlier = same
                self._lost(self._starting)

    async def _why(self, error: Exception) -> str:
        """Returns why the server is not there, with the last that it said."""
        if self._errors is None or isinstance(error, ToolFailure):
            return _said(error)
        words = await asyncio.to_thread(self._errors.last_words)
        if _has_ended(error):
            return f"it ended at once: {words}" if words else "it ended at once, without a word"
        return f"{_said(error)}; it said last: {words}" if words else _said(error)

    async def get_tools(self, ctx: RunContext[Any]) -> dict[str, ToolsetTool[Any]]:
        """Returns the tools, also while the server is down."""
        return {
            name: ToolsetTool(
                toolset=self,
                tool_def=each,
                max_retries=ctx.max_retries,
                args_validator=TOOL_SCHEMA_VALIDATOR,
            )
            for name, each in self._definitions.items()
        }

    async def call_tool(
        self, name: str, tool_args: dict[str, Any], ctx: RunContext[Any], tool: ToolsetTool[Any]
    ) -> Any:
        """Calls a tool; starts the server first if it has died."""
        if self._repeats:
            with suppress(_ServerEnded):
                return await self._call(name, tool_args)
        return await self._call(name, tool_args)

    async def _call(self, name: str, arguments: dict[str, Any]) -> Any:
        starting = self._starting
        try:
            server = await self._running()
            starting = self._starting
        except Exception as error:  # noqa: BLE001 - whatever keeps a program from starting
            self._lost(starting)
            why = await self._why(error)
            raise ToolFailure(f"{self._name} does not start again: {why}") from None
        key = idempotency_key()
        try:
            async with self._patience.limit(name):
                result = await server.direct_call_tool(
                    self._names[name], arguments, metadata={META: key} if key else None
                )
        except ToolFailure:
            raise
        except ToolError as error:
            self._starts = 0
            raise ToolFailure(str(error)) from None
        except MCPError as error:
            if error.code != CONNECTION_CLOSED:
                raise ToolFailure(_said(error)) from None
            self._lost(starting)
            raise self._ended() from None
        except Exception:  # noqa: BLE001 - whatever a broken connection raises
            self._lost(starting)
            raise self._ended() from None
        self._starts = 0
        return result

    async def close(self) -> None:
        """Ends the server."""
        self._closing = True
        self._lost(self._starting)
        await asyncio.gather(*self._ending)

    async def _running(self) -> MCPToolset[Any]:
        if self._starting is not None and _is_down(self._starting):
            self._lost(self._starting)
        if self._starting is None:
            if self._closing:
                raise ToolFailure("the task is over")
            if self._starts >= MOST_STARTS:
                raise ToolFailure(f"it has ended {self._starts} times without an answer")
            self._starts += 1
            # A task of its own: a caller that loses patience does not end what others wait for.
            self._starting = asyncio.create_task(self._start())
        return await asyncio.shield(self._starting)

    async def _start(self) -> MCPToolset[Any]:
        if self._errors is not None:
            self._errors.forget()
        client: Client[Any] = Client(self._transport(), init_timeout=START_TIMEOUT_S)
        toolset: MCPToolset[Any] = MCPToolset(client, tool_error_behavior="error")
        await toolset.__aenter__()
        return toolset

    def _lost(self, starting: asyncio.Task[MCPToolset[Any]] | None) -> None:
        """Makes the next call start the server again; of several calls that it took, once."""
        if starting is not None and starting is self._starting:
            self._starting = None
            ending = asyncio.create_task(_end(starting))
            self._ending.add(ending)
            ending.add_done_callback(self._ending.discard)

    def _ended(self) -> _ServerEnded:
        return _ServerEnded(f"{self._name} ended during the call{self._patience.warning}")


class _ServerEnded(ToolFailure):
    """The server ended during a call."""


def _is_down(starting: asyncio.Task[MCPToolset[Any]]) -> bool:
    if not starting.done():
        return False
    if starting.cancelled() or starting.exception() is not None:
        return True
    client = starting.result().client
    # fastmcp's own look, which it takes before it connects again: the client counts as connected
    # until a call has failed.
    is_dead = getattr(client.transport, "_is_session_dead", None)
    return not client.is_connected() or (is_dead is not None and bool(is_dead()))


async def _end(starting: asyncio.Task[MCPToolset[Any]]) -> None:
    if not starting.done():
        starting.cancel()
    with suppress(Exception, asyncio.CancelledError):  # it is gone, or about to be
        toolset = await starting
        await toolset.__aexit__(None, None, None)


def _over_http(server: McpTool) -> Callable[[], ClientTransport]:
    reach = current_reach()
    url = reach.filled_in(server.url or "")
    headers = filled(server.headers)
    private = reach.private_addresses, reach.private_setting
    parsed = httpx2.URL(url)
    own = parsed.netloc.decode("ascii").lower()

    def client(
        headers: dict[str, str] | None = None,
        timeout: httpx2.Timeout | None = None,
        auth: httpx2.Auth | None = None,
        **_: Any,
    ) -> httpx2.AsyncClient:
        del timeout, auth  # calls have a limit; nothing but headers was asked for
        # Headers hold secrets, which a redirect must not carry elsewhere.
        return http_client(
            private,
            check=lambda request: check_host(request.url, (own,)),
            follow_redirects=True,
            headers=headers,
        )

    return lambda: StreamableHttpTransport(url, headers=headers, httpx_client_factory=client)


def _program(server: McpTool, errors: TextIO) -> Callable[[], ClientTransport]:
    command = filled_words(server.command or ())
    if sys.platform == "linux":
        command = [sys.executable, "-ISc", _END_WITH_PARENT, *command]
    environment = filled(server.env)
    return lambda: StdioTransport(
        command[0], command[1:], env=environment, keep_alive=False, log_file=errors
    )


@contextmanager
def _warnings_to(log: Callable[[str], None]) -> Generator[None]:
    """Has what the libraries of MCP complain about in a log, not on the terminal."""
    handler = _ToLog(log)
    loggers = [logging.getLogger(name) for name in ("mcp", "fastmcp")]
    for each in loggers:
        each.addHandler(handler)
    try:
        yield
    finally:
        for each in loggers:
            each.removeHandler(handler)


class _ToLog(logging.Handler):
    def __init__(self, log: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        self._log(f"mcp: {redact(record.getMessage())}")


def _has_ended(error: BaseException) -> bool:
    """Whether a server closed the connection, as a program does that ends."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return isinstance(error, MCPError) and error.code == CONNECTION_CLOSED


def _short(server: McpTool) -> str:
    """Returns a name that tells nothing of the machine."""
    if server.url is not None:
        return httpx2.URL(current_reach().filled_in(server.url)).host
    return PurePath((server.command or ("",))[0]).name


def _said(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, ToolFailure):
        return str(error)
    return f"{type(error).__name__}: {error}".rstrip(": ")
