"""Scripted trajectories in a process of their own, whose CPU time and memory are told.

    agent_scripted.py FOLDER mloc|library TRAJECTORIES TURNS

`library` is pydantic-ai alone, with a model that answers at once.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path
from typing import Any

from agent_workload import INSTRUCTIONS, QUESTION, agent_spec, install_tool, run_rows

CONCURRENCY = 64


def _mloc(folder: Path, rows: int, turns: int) -> None:
    call = {"tool_calls": [{"name": "look", "arguments": {"query": "page"}}]}
    script = {"turns": [*[call] * (turns - 1), {"text": "Enough."}]}
    model = {"source": {"identifier": "scripted"}, "scripted": script}
    spec = agent_spec(model, 16, concurrency=CONCURRENCY)
    from mloc_dagster.executors import AgentExecutor

    run_rows(spec, AgentExecutor().load(spec), rows, folder)


def _library(_: Path, rows: int, turns: int) -> None:
    from agent_benchmark_tools import look  # pyright: ignore[reportMissingImports]
    from pydantic_ai import Agent
    from pydantic_ai.messages import ModelResponse, TextPart, ToolCallPart
    from pydantic_ai.models.function import FunctionModel

    def answer(messages: list[Any], _: Any) -> ModelResponse:
        said = sum(isinstance(each, ModelResponse) for each in messages)
        if said + 1 < turns:
            return ModelResponse([ToolCallPart("find", {"query": "page"}, f"call_{said}")])
        return ModelResponse([TextPart("Enough.")])

    async def find(query: str) -> str:
        return await look(query)

    agent = Agent(FunctionModel(answer), instructions=INSTRUCTIONS, tools=[find])
    numbers = iter(range(rows))

    async def work() -> None:
        for number in numbers:
            await agent.run(QUESTION.format(index=number))

    async def all_of_them() -> None:
        await asyncio.gather(*(work() for _ in range(CONCURRENCY)))

    asyncio.run(all_of_them())


if __name__ == "__main__":
    place, kind, rows, turns = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    install_tool(place)
    measured = {"mloc": _mloc, "library": _library}[kind]
    warm_up = place / "warm-up"
    warm_up.mkdir()
    measured(warm_up, CONCURRENCY, turns)  # what is imported and compiled once
    before = time.process_time()
    measured(place, rows, turns)
    used = time.process_time() - before
    # Not getrusage: that begins with what the process had before it became this program.
    status = Path("/proc/self/status").read_text()
    peak = int(status.split("VmHWM:")[1].split()[0]) / 1024
    print(json.dumps({"cpu_ms_a_turn": used / (rows * turns) * 1000, "peak_mib": peak}))
