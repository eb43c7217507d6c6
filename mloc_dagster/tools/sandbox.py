"""The tool `python`: code in pydantic-monty, which has no network, no files and no machine."""

from __future__ import annotations

import ast
import asyncio
import os
from collections.abc import AsyncGenerator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

from pydantic_monty import (
    CollectString,
    Monty,
    MontyError,
    MontyRuntimeError,
    MontySyntaxError,
    ResourceLimits,
)

from mloc_dagster.schema import PythonTool
from mloc_dagster.tools.failure import ToolFailure

_MOST_PROCESSES = 8
_PRINTED_BYTES = 64 * 1024
_SHOWN = 14_000
"""Characters of what was printed, and of a value, that the model sees."""

_RECURSION = 1000
_CHECKOUTS = 500
"""Calls after which a process of the sandbox makes room for a fresh one."""

_VALUE = "_value_of_last_line"


@asynccontextmanager
async def open_sandbox(
    limits: PythonTool, tool_timeout: float
) -> AsyncGenerator[Callable[[str], Awaitable[str]]]:
    """Starts the sandbox's processes and yields the tool.

    Args:
        limits: What one call may take.
        tool_timeout: Seconds that any tool's call may take; waiting for a free process does not
            count.
    """
    seconds = min(limits.seconds, tool_timeout)
    processes = max(1, min(_MOST_PROCESSES, os.cpu_count() or 1))
    # In threads: pydantic-monty's own asynchronous pool (1.4) aborts a Python that ends right
    # after it was closed.
    pool = Monty(min_processes=1, max_processes=processes, max_checkouts_per_worker=_CHECKOUTS)
    threads = ThreadPoolExecutor(processes, thread_name_prefix="mloc sandbox")
    with pool:
        try:
            loop = asyncio.get_running_loop()

            async def python(code: str) -> str:
                """Runs Python code and returns what it printed and the value of its last line.

                Each call starts anew. There is no network, there are no files, and only parts of
                the standard library, such as math, re, json, datetime and random.

                Args:
                    code: The code.
                """
                return await loop.run_in_executor(
                    threads, run_code, pool, code, limits.memory, seconds
                )

            yield python
        finally:
            await asyncio.to_thread(threads.shutdown, cancel_futures=True)


def run_code(pool: Monty, code: str, memory: int, seconds: float) -> str:
    """Runs code in a fresh session.

    Args:
        pool: The sandbox's processes.
        code: The code.
        memory: Bytes it may take.
        seconds: How long it may take.

    Returns:
        What it printed, then the value of its last line.

    Raises:
        ToolFailure: With what it printed before it failed, and why.
    """
    limits = ResourceLimits(
        max_feed_duration_secs=seconds, max_memory=memory, max_recursion_depth=_RECURSION
    )
    printed = CollectString(_PRINTED_BYTES)
    try:
        # Sleeping would hold a process, and keeps nothing from being computed.
        with pool.checkout(limits=limits, os_policy={"sleep": "zero"}) as session:
            session.feed_run(_keeping_value("\n".join(code.splitlines())), print_callback=printed)
            # Written in there: a large value would take the memory of this process.
            value = session.feed_run(
                f"None if {_VALUE} is None else repr({_VALUE})[:{_SHOWN + 1}]",
                print_callback=printed,
            )
    except MontyError as error:
        raise ToolFailure(_joined(printed.output, _reason(error, seconds, memory))) from None
    shown = "" if value is None else str(value)
    return _joined(printed.output, shown) or "(no output: print something, or end with a value)"


def _joined(printed: str, last: str) -> str:
    texts = (each if len(each) <= _SHOWN else f"{each[:_SHOWN]}…" for each in (printed, last))
    return "\n".join(each for each in (text.rstrip("\n") for text in texts) if each)


def _keeping_value(code: str) -> str:
    """Returns code that leaves the value of its last line in a variable."""
    start = f"{_VALUE} = None\n"
    try:
        tree = ast.parse(code)
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return start + code  # the sandbox says what is wrong with it
    if not tree.body or not isinstance(last := tree.body[-1], ast.Expr):
        return start + code
    lines = code.encode().split(b"\n")  # columns are counted in bytes
    line = lines[last.lineno - 1]
    before, rest = line[: last.col_offset], line[last.col_offset :]
    lines[last.lineno - 1] = before + f"{_VALUE} = ".encode() + rest
    return start + b"\n".join(lines).decode()


def _reason(error: MontyError, seconds: float, memory: int) -> str:
    if not isinstance(error, MontyRuntimeError | MontySyntaxError):
        return f"the sandbox gave up: {error}"
    said = error.display("type-msg")
    if said.startswith("TimeoutError: feed time limit"):
        return f"TimeoutError: the code ran longer than {seconds:g} s"
    if said.startswith("MemoryError: memory limit"):
        if f"> {_PRINTED_BYTES} bytes" in said:
            return f"it printed more than {_PRINTED_BYTES // 1024} KiB"
        return f"MemoryError: the code took more than {memory // 1024**2} MiB"
    frames = error.traceback()
    # The first line is ours.
    return f"{said} (line {frames[-1].line - 1})" if frames else said
