"""Agents on a running stack, and what their tools were asked for."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import yaml

from tests.e2e.chaos.task import Holding, Task
from tests.e2e.stack import Stack, until

JOB = "agents"
ROWS = 200
SHARDS = 4
"""By default, so that a shard has about as many rows as a worker works on at once."""

SERVER = Path(__file__).with_name("ledger_server.py")

TURNS = [
    {"tool_calls": [{"name": "look", "arguments": {"at": "row {index}"}}]},
    {"tool_calls": [{"name": "write", "arguments": {"row": "{index}", "text": "{result}"}}]},
    {"tool_calls": [{"name": "look", "arguments": {"at": "{result}"}}]},
    {"text": "{result}: done"},
]


def ledger_of(library: Path) -> Path:
    """Where calls that write are noted, beside a template library."""
    return library.parent / "ledger.jsonl"


def agents_template(ledger: Path) -> str:
    """Agents that look, write, look and answer."""
    command = [sys.executable, str(SERVER), str(ledger)]
    tools = [
        {"mcp": {"command": [*command, name], "allow": [name]}, "effect": effect}
        for name, effect in (("look", "read"), ("write", "write"))
    ]
    spec = {
        "data": {"type": "list", "items": [f"task {number}" for number in range(ROWS)]},
        "model": {
            "source": {"identifier": "scripted"},
            "scripted": {"turns": [{**turn, "delay_s": 0.1} for turn in TURNS]},
        },
        "agent": {"tools": tools},
        "inference": {"error_budget": 0.5},
        "retries": {"max": 3, "delay_s": 0},
        "output": {"formats": ["json", "parquet"]},
    }
    template = {"apiVersion": "mloc/v1", "kind": "AgentTask", "metadata": {"name": JOB}}
    return yaml.safe_dump({**template, "spec": spec})


@dataclass(frozen=True, slots=True)
class Agents:
    """A task of agents.

    Attributes:
        task: The task.
    """

    task: Task

    @classmethod
    def launch(cls, stack: Stack) -> Agents:
        """Launches it."""
        return cls(Task.launch(stack, JOB, SHARDS))

    def journal(self, shard: str = "*") -> Iterator[dict[str, Any]]:
        """What the agents have noted, of one shard or of all."""
        for part in sorted(self.task.folder.glob(f"journal/{shard}/*.jsonl")):
            yield from map(json.loads, part.read_text().splitlines())

    def in_flight(self, shard: str) -> set[int]:
        """The rows whose call that writes has begun, and is not known to be over."""
        entries = [each for each in self.journal(shard) if each.get("tool") == "write"]
        rows = {kind: {e["index"] for e in entries if e["type"] == kind} for kind in _KINDS}
        return rows["begun"] - rows["result"]

    def told(self, text: str) -> set[int]:
        """The rows of which a tool said a text."""
        told = (each for each in self.journal() if each["type"] == "result")
        return {each["index"] for each in told if text in each["output"]}

    def written(self) -> list[dict[str, Any]]:
        """What was written, in order."""
        ledger = ledger_of(self.task.stack.layout.home)
        lines = map(json.loads, ledger.read_text().splitlines())
        return [each for each in lines if each["key"].startswith(f"{self.task.run_id}/")]

    def wait_writing(self, worker: str) -> Holding:
        """Waits until calls of a worker that write are on their way; returns its shard."""

        def writing() -> Holding | None:
            held = (each for each in self.task.holdings() if each.worker == worker)
            return next((each for each in held if len(self.in_flight(each.shard)) >= 3), None)

        found = until(writing, f"{worker} writes")
        assert found is not None
        return found


_KINDS = ("begun", "result")


def servers_of(pid: int) -> list[psutil.Process]:
    """The MCP servers of a worker."""
    children = psutil.Process(pid).children(recursive=True)
    return [each for each in children if str(SERVER) in each.cmdline()]
