"""Trajectories of a task: what each row's journal says, beside the row itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from mloc_dagster.planning import Shard
from mloc_dagster.results.columns import rows_with_columns
from mloc_dagster.results.export_row import free_name
from mloc_dagster.results.journal import Brief, Steps, journal_brief, journal_steps
from mloc_dagster.results.part_files import read_rows
from mloc_dagster.results.record import read_plan
from mloc_dagster.results.rows import Message, OutputRow
from mloc_dagster.results.store import Folder


def read_trajectories(folder: Folder) -> Iterator[tuple[OutputRow, Steps]]:
    """Yields the finished rows of a task in order of index, each with its steps."""
    journals = _Journals(folder)
    for row in read_rows(folder):
        steps, _ = journals.of(row)
        yield row, steps


class _Journals:
    """The journals of a task's shards, one at a time: rows come in order."""

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        plan = read_plan(folder)
        self._shards = () if plan is None else plan.shards
        self._shard: Shard | None = None
        self._steps: dict[int, Steps] = {}
        self._brief = Brief()

    def of(self, row: OutputRow) -> tuple[Steps, Brief]:
        """Returns the steps of a row, and what it has in common with others."""
        place = _place(row)
        found = next((each for each in self._shards if each.start <= place < each.stop), None)
        if found is not self._shard and found is not None:
            self._steps, self._shard = journal_steps(self._folder, found), found
            self._brief = journal_brief(self._folder, found)
        return self._steps.get(row.index, Steps()), self._brief


def find_trajectory(folder: Folder, index: int) -> tuple[OutputRow | None, Steps] | None:
    """Returns one row's trajectory, finished or not; None where nothing is known of it."""
    plan = read_plan(folder)
    shards = () if plan is None else plan.shards
    row = next((each for each in read_rows(folder, index, index + 1)), None)
    if row is not None:
        shards = [each for each in shards if each.start <= _place(row) < each.stop]
    for shard in shards:
        steps = journal_steps(folder, shard).get(index)
        if steps is not None:
            return row, steps
    return None if row is None else (row, Steps())


def _place(row: OutputRow) -> int:
    return row.index if row.place < 0 else row.place


EXAMPLE_COLUMNS = (
    *("index", "prompt", "completion", "output", "finish_reason", "error", "steps", "stop"),
    *("messages", "tools"),
)
"""Columns of `read_examples`; one of the input with such a name is called `input_` and its name."""


def read_examples(folder: Folder) -> Iterator[dict[str, object]]:
    """Yields the finished rows of a task as rows to train on, in order of index.

    Each has its `prompt` and its output as `completion`; of an agent it is the whole chat instead,
    as `messages`, with the `tools` that the agent was offered. What the row brought along and its
    scores stand beside them.
    """
    journals = _Journals(folder)
    for row, columns in rows_with_columns(folder):
        steps, brief = journals.of(row)
        example: dict[str, object] = {
            "index": row.index,
            "output": row.output,
            "finish_reason": row.finish_reason,
            "error": row.error,
        }
        if steps.turns:
            chat = trajectory_messages(row, steps, brief)
            example |= {"steps": row.steps, "stop": row.stop}
            example |= {"messages": list(map(_plain, chat)), "tools": brief.tools}
        else:
            given = row.prompt
            prompt = given if isinstance(given, str) else list(map(_plain, given))
            example |= {"prompt": prompt, "completion": row.output}
        yield {free_name(name, EXAMPLE_COLUMNS): each for name, each in columns.items()} | example


def trajectory_messages(row: OutputRow, steps: Steps, brief: Brief) -> list[Message]:
    """Returns a trajectory as one chat, from the agent's instructions to its answer."""
    chat = [] if brief.instructions is None else [Message("system", brief.instructions)]
    chat += [Message("user", row.prompt)] if isinstance(row.prompt, str) else row.prompt
    answers: list[Message] = []
    for number in sorted(steps.turns):
        turn = steps.turns[number]
        chat += turn.told or answers
        chat.append(
            Message(
                "assistant", turn.text, tool_calls=turn.tool_calls or None, reasoning=turn.reasoning
            )
        )
        results = ((each.id, steps.results.get((number, each.id))) for each in turn.tool_calls)
        answers = [
            Message("tool", result.output, tool_call_id=call)
            for call, result in results
            if result is not None
        ]
    return chat


def _plain(message: Message) -> dict[str, Any]:
    """Returns a message as chat templates read it: the arguments of calls as objects."""
    plain: dict[str, Any] = msgspec.to_builtins(message)
    plain.setdefault("content", "")
    if message.reasoning is not None:
        plain["reasoning_content"] = message.reasoning  # templates have one name or the other
    for call in plain.get("tool_calls", ()):
        function = call["function"]
        try:
            function["arguments"] = msgspec.json.decode(function["arguments"] or "{}")
        except msgspec.DecodeError:
            continue  # the model was told that this is no JSON
    return plain
