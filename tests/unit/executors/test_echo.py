"""What the `echo` block of a template programs."""

from __future__ import annotations

from typing import Any

import pytest

from mloc_dagster.errors import TaskCancelled, TransientError
from mloc_dagster.executors.base import ShardContext, ShardInput
from mloc_dagster.executors.echo import EchoExecutor, EchoSpec
from mloc_dagster.results import InputRow, Message, OutputRow, Prompt


def echo(
    prompts: list[Prompt],
    *,
    given: list[OutputRow] | None = None,
    shard: int = 0,
    attempt: int = 1,
    stop: bool = False,
    **block: Any,
) -> list[OutputRow]:
    spec = EchoSpec.model_validate(
        {"taskType": "echo", "data": {"type": "list", "items": ["unused"]}, "echo": block}
    )
    given = [] if given is None else given
    rows = [InputRow(index, prompt) for index, prompt in enumerate(prompts)]
    context = ShardContext(given.append, lambda: stop, lambda _: None)
    shard_input = ShardInput("t", shard, attempt, 0, rows, len(rows))
    EchoExecutor().run(shard_input, spec, None, context)
    return given


def test_text_comes_back_and_words_are_counted() -> None:
    (row,) = echo(["three short words"])
    assert (row.output, row.prompt_tokens, row.completion_tokens) == ("three short words", 3, 3)


def test_a_chat_is_answered_with_the_last_thing_its_user_said() -> None:
    chat = [
        Message("user", "first"),
        Message("user", [{"type": "text", "text": "second"}, {"type": "image", "url": "x"}]),
        Message("assistant", "third"),
    ]
    assert echo([chat])[0].output == "second"


@pytest.mark.parametrize(("count", "output"), [(0, ""), (1, "a"), (5, "a b a b a")])
def test_output_tokens_sets_the_length(count: int, output: str) -> None:
    (row,) = echo(["a b"], output_tokens=count)
    assert (row.output, row.completion_tokens) == (output, count)


def test_poison_rows_end_with_an_error() -> None:
    rows = echo(["a", "b", "c"], poison=[1])
    assert [row.finish_reason for row in rows] == ["stop", "error", "stop"]
    assert "poison" in (rows[1].error or "")


def fails(**where: Any) -> bool:
    try:
        echo(["a"] * 10, fail_rate=0.5, **where)
    except TransientError:
        return True
    return False


def test_an_attempt_fails_half_way() -> None:
    given: list[OutputRow] = []
    with pytest.raises(TransientError, match="shard 0000, attempt 1"):
        echo(["a"] * 10, given=given, fail_rate=1)
    assert len(given) == 5


def test_failures_are_drawn_from_seed_shard_and_attempt() -> None:
    drawn = [fails(shard=shard, attempt=attempt) for shard in range(10) for attempt in (1, 2)]
    assert drawn == [fails(shard=shard, attempt=at) for shard in range(10) for at in (1, 2)]
    assert 3 < sum(drawn) < 17
    assert drawn != [fails(seed=1, shard=shard, attempt=at) for shard in range(10) for at in (1, 2)]


def test_a_long_delay_ends_when_the_task_is_cancelled() -> None:
    with pytest.raises(TaskCancelled):
        echo(["a"], delay_s=3600, stop=True)
