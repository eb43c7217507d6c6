from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from mloc_dagster.executors.engines.vllm.engine import STEP_TOKENS, PromptSteps


def engine(most: int = 8192, longest: int = 8192, runner: str = "generate") -> Any:
    """An engine that works within this process, as far as its scheduler."""
    config = SimpleNamespace(max_num_batched_tokens=most, enable_chunked_prefill=False)
    scheduler = SimpleNamespace(scheduler_config=config, max_num_scheduled_tokens=most)
    return SimpleNamespace(
        engine_core=SimpleNamespace(engine_core=SimpleNamespace(scheduler=scheduler)),
        model_config=SimpleNamespace(max_model_len=longest, runner_type=runner),
    )


def state(llm: Any) -> tuple[bool, int]:
    scheduler = llm.engine_core.engine_core.scheduler
    return scheduler.scheduler_config.enable_chunked_prefill, scheduler.max_num_scheduled_tokens


def test_prompts_are_read_in_pieces_until_a_seeded_one_comes() -> None:
    llm = engine()
    steps = PromptSteps(llm, {})
    steps.in_pieces()
    assert state(llm) == (True, STEP_TOKENS)
    steps.whole()
    assert state(llm) == (False, 8192)
    steps.in_pieces()
    assert state(llm) == (True, STEP_TOKENS)


def test_the_template_may_forbid_pieces() -> None:
    llm = engine()
    PromptSteps(llm, {"enable_chunked_prefill": False}).in_pieces()
    assert state(llm) == (False, 8192)


def test_the_templates_own_size_of_a_step_stays() -> None:
    llm = engine(most=6000, longest=512)
    PromptSteps(llm, {"max_num_batched_tokens": 6000}).in_pieces()
    assert state(llm) == (True, 6000)


def test_a_seeded_row_that_may_not_fit_into_a_step_is_refused() -> None:
    steps = PromptSteps(engine(most=512, longest=1024), {"max_num_batched_tokens": 512})
    with pytest.raises(ValueError, match=r"max_num_batched_tokens is 512: .* max_model_len, 1024"):
        steps.whole()


def test_poolers_and_engines_of_their_own_process_are_left_alone() -> None:
    llm = engine(runner="pooling")
    PromptSteps(llm, {}).in_pieces()
    assert state(llm) == (False, 8192)
    elsewhere = PromptSteps(SimpleNamespace(engine_core=object()), {})
    elsewhere.in_pieces()
    elsewhere.whole()
