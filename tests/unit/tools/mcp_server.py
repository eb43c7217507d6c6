"""An MCP server of the tests: `python mcp_server.py` speaks over stdio, with a port over HTTP."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

from mcp.server.mcpserver import Context, MCPServer

server = MCPServer("tests")


@server.tool()
def add(a: int, b: int) -> int:
    """Adds two numbers."""
    return a + b


@server.tool()
def pid() -> int:
    """Returns the process's id."""
    return os.getpid()


@server.tool()
def variable(name: str) -> str:
    """Returns a variable of the environment."""
    return os.environ.get(name, "none")


@server.tool()
def fail(why: str) -> str:
    """Fails."""
    raise ValueError(why)


@server.tool()
def say(line: str) -> str:
    """Writes to the standard error."""
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()
    return "said"


@server.tool()
async def hang() -> str:
    """Never ends."""
    await asyncio.Event().wait()
    return ""


@server.tool()
def die() -> str:
    """Ends the process in the middle of the call."""
    os.kill(os.getpid(), signal.SIGKILL)
    return ""


@server.tool()
def die_once(mark: str) -> str:
    """Ends the process in the middle of the call, unless there is a file of that name."""
    if Path(mark).exists():
        return "survived"
    Path(mark).touch()
    os.kill(os.getpid(), signal.SIGKILL)
    return ""


@server.tool()
def key(context: Context) -> str:
    """Returns the call's idempotency key."""
    return str(dict(context.request_context.meta or {}).get("mloc/idempotency-key"))


if __name__ == "__main__":
    if os.environ.get("MCP_TEST_STUBBORN"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if len(sys.argv) > 1:
        server.run("streamable-http", port=int(sys.argv[1]))
    else:
        server.run()
