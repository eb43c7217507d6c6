"""The same trajectories for everything that is measured: chats of a few turns, each with a call.

No model at hand makes six turns by itself, so the answers get their calls here: whatever the model
writes is a turn that calls `look`, up to the last. All that the engine computes is real.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from mloc_dagster.executors import (
    AgentExecutor,
    Completion,
    Engine,
    EngineRequest,
    Replies,
    ShardContext,
    ShardInput,
)
from mloc_dagster.planning import Shard
from mloc_dagster.results import FunctionCall, InputRow, Journal, OutputRow, ToolCall, open_store
from mloc_dagster.schema import AgentSpec

FOUND = "The page says that the station was opened in 1887 and moved to its present place in 1913."
"""What the tool answers."""

INSTRUCTIONS = (
    "Answer questions about railway stations from what the tool finds. Look for the year when a "
    "station was opened, for the architect of its first building, and for the lines that end "
    "there. Say which page told you so. If pages contradict each other, say that as well, and "
    "take the one that names its own source. Do not answer from memory. Keep the answer short: "
    "one sentence with the year, one with the name of the architect, one with the lines."
)
QUESTION = "What is known about station number {index}?"

_TOOL = f'''
import asyncio


async def look(query: str, *, seconds: float = 0.0) -> str:
    """Looks for pages.

    Args:
        query: What to look for.
    """
    if seconds:
        await asyncio.sleep(seconds)
    return {FOUND!r}
'''


def install_tool(folder: Path) -> None:
    """Registers the tool in this process, as a distribution of somebody else does."""
    (folder / "agent_benchmark_tools.py").write_text(_TOOL)
    info = folder / "agent_benchmark-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: agent-benchmark\nVersion: 1.0\n")
    entry = "[mloc_dagster.tools]\nlook = agent_benchmark_tools:look\n"
    (info / "entry_points.txt").write_text(entry)
    sys.path.insert(0, str(folder))


def agent_spec(model: dict[str, Any], new_tokens: int, **agent: Any) -> AgentSpec:
    """Returns an agent task; `seconds` is how long its tool takes."""
    seconds = agent.pop("seconds", 0.0)
    tool = {"entry_point": "look", "effect": "read", "options": {"seconds": seconds}}
    return AgentSpec.model_validate(
        {
            "taskType": "agent",
            "data": {"type": "list", "items": ["?"]},
            "model": model,
            "inference": {"temperature": 0, "max_tokens": new_tokens, "ignore_eos": True},
            "agent": {"instructions": INSTRUCTIONS, "tools": [tool], **agent},
        }
    )


def run_rows(spec: AgentSpec, engine: Engine, rows: int, folder: Path) -> list[OutputRow]:
    """Carries rows to their answers as a warm worker does, journal included."""
    shard = Shard(task_id="t", index=0, total=1, start=0, stop=rows)
    asked = (InputRow(index, QUESTION.format(index=index)) for index in range(rows))
    kept = open_store(folder.as_uri()).task("t")
    done: list[OutputRow] = []
    with Journal(kept, shard, 1, most=256, interval_s=2) as journal:
        context = ShardContext(
            done.append, lambda: False, lambda _: None, journal=journal, save=kept.write_bytes
        )
        AgentExecutor().run(ShardInput("t", 0, 1, 7, asked, rows), spec, engine, context)
    failed = [each.error for each in done if each.error is not None]
    if failed:
        raise SystemExit(f"{len(failed)} rows failed: {failed[0]}")
    return done


def give_calls(engine: Any, turns: int) -> None:
    """Makes every answer of an engine, but that of the last turn, a call of the tool."""
    run: Callable[[Any, Replies], None] = engine.run

    def calling(requests: Any, replies: Replies) -> None:
        def done(request: EngineRequest, completion: Completion) -> None:
            replies.done(request, _with_call(request, completion, turns))

        run(requests, replace(replies, done=done))

    engine.run = calling


def _with_call(request: EngineRequest, completion: Completion, turns: int) -> Completion:
    chat = request.row.prompt
    said = 0 if isinstance(chat, str) else sum(each.role == "assistant" for each in chat)
    if said + 1 >= turns:  # random weights may well write nothing that can be read
        answer = replace(completion.answers[0], text="Enough.", finish_reason="stop")
        return replace(completion, answers=(answer,))
    call = ToolCall(f"call_{said}", FunctionCall("look", f'{{"query": "page {said}"}}'))
    answer = replace(completion.answers[0], tool_calls=(call,), finish_reason="tool_calls")
    return replace(completion, answers=(answer,))
