"""A trajectory as the API tells it."""

from __future__ import annotations

from mloc_dagster.results import ModelTurn, OutputRow, Steps, prompt_text
from mloc_dagster.wire import TrajectoryCall, TrajectoryTurn, TrajectoryView


def trajectory_view(
    task_id: str, index: int, row: OutputRow | None, steps: Steps
) -> TrajectoryView:
    """Returns how a row came to its answer.

    Args:
        task_id: The task.
        index: The row.
        row: What it became; None while it is under way.
        steps: What was done for it.
    """
    turns = _turns(steps)
    if row is None:
        return TrajectoryView(task_id=task_id, index=index, prompt="", turns=turns)
    return TrajectoryView(
        task_id=task_id,
        index=index,
        prompt=prompt_text(row.prompt),
        output=row.output,
        error=row.error,
        stop=row.stop,
        turns=turns,
    )


def _turns(steps: Steps) -> tuple[TrajectoryTurn, ...]:
    return tuple(_turn(steps.turns[number], steps) for number in sorted(steps.turns))


def _turn(turn: ModelTurn, steps: Steps) -> TrajectoryTurn:
    calls: list[TrajectoryCall] = []
    for call in turn.tool_calls:
        result = steps.results.get((turn.turn, call.id))
        below = steps.workers.get((turn.turn, call.id))
        calls.append(
            TrajectoryCall(
                id=call.id,
                tool=call.function.name,
                arguments=call.function.arguments,
                output=None if result is None else result.output,
                failed=result is not None and result.failed,
                seconds=None if result is None else result.seconds,
                turns=() if below is None else _turns(below),
            )
        )
    return TrajectoryTurn(
        turn=turn.turn,
        text=turn.text,
        reasoning=turn.reasoning,
        finish_reason=turn.finish_reason,
        prompt_tokens=turn.prompt_tokens,
        completion_tokens=turn.completion_tokens,
        reasoning_tokens=turn.reasoning_tokens,
        cached_tokens=turn.cached_tokens,
        seconds=turn.seconds,
        calls=tuple(calls),
    )
