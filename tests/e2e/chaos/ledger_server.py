"""An MCP server of the tests: `ledger_server.py FILE` notes each call that writes in FILE."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

from mcp.server.mcpserver import Context, MCPServer

SECONDS = 0.3
"""Between what a call does and its answer, so that some are on their way when something dies."""

server = MCPServer("ledger")


@server.tool()
async def look(at: str) -> str:
    """Reads."""
    await asyncio.sleep(SECONDS / 3)
    return f"{at} seen"


@server.tool()
async def write(row: int, text: str, context: Context) -> str:
    """Changes something."""
    key = dict(context.request_context.meta or {})["mloc/idempotency-key"]
    with Path(sys.argv[1]).open("a", encoding="utf-8") as ledger:
        ledger.write(json.dumps({"key": key, "row": row, "text": text}) + "\n")
    await asyncio.sleep(SECONDS)
    return f"{text}, written"


if __name__ == "__main__":
    server.run()
