"""What an agent task tells of its rows: a summary, and each trajectory as text."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from textwrap import indent

import msgspec
from pydantic import JsonValue

from mloc_dagster.executors.agent.counts import COUNTS, FAILED_CALLS, TOOL_CALLS, TURNS
from mloc_dagster.executors.agent.traces import trace_task
from mloc_dagster.results import (
    Folder,
    ModelTurn,
    OutputRow,
    Steps,
    read_examples,
    read_rows,
    read_summary,
    read_trajectories,
)
from mloc_dagster.schema import AgentSpec, Usage

OUTPUT_NAME = "agent_output.txt"
LOGS_NAME = "batch_logs"
SUMMARY_NAME = "batch_summary.json"
PAPERS_NAME = "paper_summary.md"
TRAJECTORIES_NAME = "trajectories.jsonl"
FILES = frozenset({OUTPUT_NAME, LOGS_NAME, SUMMARY_NAME, PAPERS_NAME, TRAJECTORIES_NAME})

_MOST_LOGGED = 1000
"""Rows of the execution log in `responses.json`; the items say the same of all rows."""


class AgentReport:
    """Counts the rows of an agent task.

    Args:
        spec: The task.
    """

    def __init__(self, spec: AgentSpec) -> None:
        self._config = spec.config_name
        self._log: list[JsonValue] = []
        self._rows = self._failed = 0
        self._counts: dict[str, int] = dict.fromkeys(COUNTS, 0)

    def add(self, row: OutputRow) -> None:
        """Counts a row."""
        self._rows += 1
        self._failed += row.error is not None
        self._counts[TURNS] += row.steps
        self._counts[TOOL_CALLS] += len(row.tool_calls or ())
        self._counts[FAILED_CALLS] += row.failed_calls
        if len(self._log) < _MOST_LOGGED:
            self._log.append(
                {
                    "index": row.index,
                    "stop": row.stop,
                    "steps": row.steps,
                    "tool_calls": len(row.tool_calls or ()),
                    "seconds": round(row.latency_s, 3),
                }
            )

    def result(self, usage: Usage) -> Mapping[str, JsonValue]:
        """Returns the summary, and the names that earlier versions had for the usage."""
        return {
            "usage": {
                **usage.model_dump(),
                "execution_time_sec": usage.latency_sec,
                "agent_config": self._config,
            },
            "metadata": {
                "tasks_count": self._rows,
                "execution_log": self._log,
                "batch_summary": _counts(self._rows, self._failed),
            },
        }

    def counts(self) -> Mapping[str, int]:
        """Returns how many turns and calls there were."""
        return self._counts

    def write_files(self, folder: Folder, wanted: Collection[str]) -> None:
        """Writes what the template names, and the span of the task."""
        trace_task(folder)
        names = {name.split("/")[0] for name in wanted}
        if SUMMARY_NAME in names:
            summary = read_summary(folder)
            text = json.dumps(_counts(summary.rows, summary.errors), indent=2)
            folder.write_bytes(SUMMARY_NAME, text.encode() + b"\n")
        if OUTPUT_NAME in names:
            with folder.create(OUTPUT_NAME) as file:
                for row, steps in read_trajectories(folder):
                    file.write(("\n".join(transcript(row, steps)) + "\n\n").encode())
        if LOGS_NAME in names:
            for row, steps in read_trajectories(folder):
                text = "\n".join(transcript(row, steps)) + "\n"
                folder.write_bytes(f"{LOGS_NAME}/task_{row.index}_output.txt", text.encode())
        if TRAJECTORIES_NAME in names:
            encode = msgspec.json.Encoder(enc_hook=str).encode
            with folder.create(TRAJECTORIES_NAME) as file:
                for example in read_examples(folder):
                    file.write(encode(example) + b"\n")
        if PAPERS_NAME in names:
            with folder.create(PAPERS_NAME) as file:
                for row in read_rows(folder):
                    said = row.output if row.error is None else f"*{row.error}*"
                    file.write(f"# {_title(row)}\n\n{said}\n\n".encode())


def _counts(rows: int, failed: int) -> dict[str, JsonValue]:
    return {"total_tasks": rows, "completed": rows - failed, "failed": failed}


def transcript(row: OutputRow, steps: Steps) -> Iterator[str]:
    """Yields the lines of one trajectory: what was asked, thought, called, found out, answered."""
    yield f"== {row.index}: {_title(row)}"
    yield from _of_steps(steps)
    yield f"-- {row.stop}, {row.steps} steps, {row.latency_s:.1f} s"
    if row.error is not None:
        yield f"error: {row.error}"


def _of_steps(steps: Steps) -> Iterator[str]:
    for number in sorted(steps.turns):
        turn = steps.turns[number]
        yield f"-- turn {number}: {_figures(turn)}"
        if turn.reasoning:
            yield f"(thinks) {turn.reasoning}"
        if turn.text:
            yield turn.text
        for call in turn.tool_calls:
            yield f"> {call.function.name} {call.function.arguments}"
            below = steps.workers.get((number, call.id))
            if below is not None:
                yield from (indent(each, "    ") for each in _of_steps(below))
            answer = steps.results.get((number, call.id))
            if answer is not None:
                yield f"< {answer.output}"


def _figures(turn: ModelTurn) -> str:
    cached = f", {turn.cached_tokens} cached" if turn.cached_tokens else ""
    return (
        f"{turn.prompt_tokens} tokens read{cached}, {turn.completion_tokens} written, "
        f"{turn.seconds:.2f} s"
    )


def _title(row: OutputRow) -> str:
    text = row.prompt if isinstance(row.prompt, str) else str(row.prompt[-1].content)
    return " ".join(text.split())[:200]
