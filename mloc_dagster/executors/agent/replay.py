"""Replays of a recorded task: its tools' answers, as long as the model calls the same.

The model's turns are computed anew: another prompt or another model is compared with the recorded
one, on the same results of tools. The first turn that calls otherwise ends its row, as nobody knows
what its tools would have said.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import zip_longest

from mloc_dagster.errors import InputError
from mloc_dagster.planning import Shard
from mloc_dagster.results import (
    CallKey,
    Folder,
    ModelTurn,
    Steps,
    ToolCall,
    journal_steps,
    open_store,
    read_plan,
)
from mloc_dagster.tools import FailedCall

ANSWER_TOOL = "final_result"
"""What pydantic-ai calls the call that is the final answer, where that has a form."""


class RowFailedError(Exception):
    """The row ends with an error."""


class Record:
    """What a recorded task did for a row, or for a call that an agent answers.

    Args:
        steps: What its journal says.
        task_id: The task.
        within: Which agent it is of, for messages.
    """

    def __init__(self, steps: Steps, task_id: str, within: str = "") -> None:
        self._steps = steps
        self._task_id = task_id
        self._within = within

    def check(self, turn: ModelTurn) -> None:
        """Checks that a turn calls what the recorded one called; its texts may differ.

        Raises:
            RowFailedError: If it does not; says at which turn, and how.
        """
        known = self._steps.turns.get(turn.turn)
        if known is None:
            raise self._diverged(turn.turn, "the record ends before it")
        for one, other in zip_longest(_asked(turn), _asked(known)):
            if one != other:
                now, then = (_shown(each) for each in (one, other))
                raise self._diverged(turn.turn, f"the model {now}, where the record {then}")

    def answer(self, turn: int, place: int) -> str:
        """Returns what a tool answered.

        Raises:
            RowFailedError: If the record does not have it.
        """
        found = self._steps.results.get(self._key(turn, place))
        if found is None:
            raise self._diverged(turn, f"the record has no answer to its call number {place + 1}")
        return FailedCall(found.output) if found.failed else found.output

    def of_call(self, turn: int, place: int) -> Record:
        """Returns the record of the agent that answered a call."""
        key = self._key(turn, place)
        call = tool_calls(self._steps.turns[turn])[place]
        within = f"of {call.function.name!r}, called in turn {turn}, "
        return Record(self._steps.workers.get(key, Steps()), self._task_id, within)

    def _key(self, turn: int, place: int) -> CallKey:
        known = self._steps.turns.get(turn)
        calls = [] if known is None else tool_calls(known)
        return turn, calls[place].id if place < len(calls) else ""

    def _diverged(self, turn: int, how: str) -> RowFailedError:
        return RowFailedError(
            f"replay of {self._task_id}: turn {turn} {self._within}differs: {how}"
        )


class Recording:
    """The trajectories of a task that is replayed.

    Args:
        task_id: The task.
        near: The shard whose rows are wanted: in a task of the same rows they are in the same one.

    Raises:
        InputError: If there is no such task.
    """

    def __init__(self, task_id: str, near: int) -> None:
        self._task_id = task_id
        self._folder: Folder = open_store().task(task_id)
        plan = read_plan(self._folder)
        if plan is None:
            raise InputError(
                f"agent.recorded: there is no task {task_id!r} in the results that has begun"
            )
        shards = sorted(plan.shards, key=lambda each: (each.index != near, each.index))
        self._shards: Iterator[Shard] = iter(shards)
        self._known: dict[int, Steps] = {}

    def of(self, index: int) -> Record:
        """Returns the record of a row; an empty one if the task has not worked on it."""
        while index not in self._known:
            shard = next(self._shards, None)
            if shard is None:
                break
            self._known |= journal_steps(self._folder, shard)
        return Record(self._known.pop(index, Steps()), self._task_id)


def tool_calls(turn: ModelTurn) -> list[ToolCall]:
    """Returns the calls of a turn, without one that is the final answer."""
    return [each for each in turn.tool_calls if each.function.name != ANSWER_TOOL]


def _asked(turn: ModelTurn) -> list[tuple[str, str]]:
    return [(each.function.name, _plain(each.function.arguments)) for each in tool_calls(turn)]


def _plain(arguments: str) -> str:
    """Returns arguments in one spelling."""
    try:
        return json.dumps(json.loads(arguments), sort_keys=True, ensure_ascii=False)
    except ValueError:
        return arguments


def _shown(call: tuple[str, str] | None) -> str:
    return "makes no call" if call is None else f"calls {call[0]} {call[1]}"
