"""Steps are counted as the installed trainers count them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from mloc_dagster.executors.training.arguments import count_steps
from mloc_dagster.executors.training.base import Hooks, TrainingRun
from mloc_dagster.models import builtin_model_path
from mloc_dagster.schema import TrainingSpec, find_task_type


def spec_of(task_type: str, training: dict[str, Any], **more: Any) -> TrainingSpec:
    if task_type in ("grpo", "rloo", "ppo"):
        more = {"rewards": [{"name": "contains"}], **more}
    source = {"type": "builtin", "identifier": "tiny-chat"}
    spec = find_task_type(task_type).spec.model_validate(
        {
            "taskType": task_type,
            "model": {"source": source},
            "data": {"rows": [{"text": "the rows of the run"}]},
            "training": training,
            **more,
        }
    )
    assert isinstance(spec, TrainingSpec)
    return spec


def steps(spec: TrainingSpec, rows: int | None) -> int | None:
    counted = count_steps(spec, rows)
    return None if counted is None else counted.steps


def test_an_epoch_ends_with_what_is_left_of_its_last_batches() -> None:
    training = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
    counted = count_steps(spec_of("sft", {**training, "num_train_epochs": 3}), 20)
    assert counted is not None
    assert counted.steps == 9  # 5 batches: 2, 2 and 1 of them
    assert counted.rows_per_step == pytest.approx(20 / 3)
    assert counted.source == "3 epochs of 3, 8 rows a step"
    assert steps(spec_of("dpo", {**training, "num_train_epochs": 0.5}), 20) == 2


def test_max_steps_needs_no_rows() -> None:
    counted = count_steps(spec_of("sft", {"max_steps": 7, "per_device_train_batch_size": 4}), None)
    assert counted is not None
    assert (counted.steps, counted.rows_per_step) == (7, 4)
    assert steps(spec_of("sft", {}), None) is None
    assert steps(spec_of("ppo", {}), None) is None
    assert steps(spec_of("ppo", {"total_episodes": 20}), None) == 3


def test_processes_share_the_rows() -> None:
    training = {"per_device_train_batch_size": 4}
    two = {"resources": {"hardware": {"gpu": {"count": 2}}}}
    assert steps(spec_of("sft", training, **two), 33) == 5
    assert steps(spec_of("sft", training, **two, enforce_cpu=True), 33) == 9
    assert steps(spec_of("sft", {**training, "num_processes": 4}), 33) == 3
    assert steps(spec_of("ppo", training, **two), 33) == 9


def test_packed_rows_take_no_more_steps() -> None:
    counted = count_steps(spec_of("sft", {"packing": True}), 80)
    assert counted is not None
    assert (counted.steps, counted.at_most) == (10, True)


def test_too_few_prompts_train_nothing() -> None:
    counted = count_steps(spec_of("grpo", {"per_device_train_batch_size": 16}), 1)
    assert counted is not None
    assert (counted.steps, counted.source) == (0, "1 rows fill no lot of 2 prompts")


ROWS = [{"prompt": f"{number} and", "completion": f" {number + 1}"} for number in range(11)]
SMALL = {"save_strategy": "no", "per_device_train_batch_size": 2}
CASES: list[tuple[str, dict[str, Any]]] = [
    ("sft", {"num_train_epochs": 2}),
    ("sft", {"num_train_epochs": 1.5, "gradient_accumulation_steps": 4}),
    ("sft", {"dataloader_drop_last": True}),
    ("sft", {"max_steps": 5}),
    ("rloo", {"num_train_epochs": 2}),
    ("rloo", {"gradient_accumulation_steps": 2, "num_iterations": 2}),
    ("grpo", {"per_device_train_batch_size": 8}),
    ("grpo", {"num_generations": 2, "steps_per_generation": 3}),
    ("grpo", {"num_generations": 2, "generation_batch_size": 8, "num_train_epochs": 3}),
]


@pytest.mark.parametrize(("task_type", "training"), CASES)
def test_the_installed_trainer_counts_the_same(
    task_type: str, training: dict[str, Any], tmp_path: Path
) -> None:
    pytest.importorskip("trl")
    transformers = pytest.importorskip("transformers")
    from mloc_dagster.executors.training.trainers import online_trainer, sft_trainer

    folder = builtin_model_path("tiny-chat")
    spec = spec_of(task_type, {**SMALL, **training}, enforce_cpu=True)
    run = TrainingRun(
        spec=spec,
        model=transformers.AutoModelForCausalLM.from_pretrained(folder),
        tokenizer=transformers.AutoTokenizer.from_pretrained(folder),
        rows=ROWS,
        output_dir=tmp_path,
        resume_from=None,
        hooks=Hooks(
            progress=lambda *_: None,
            log=lambda _: None,
            cancelled=lambda: False,
            checkpoint=lambda *_: None,
        ),
    )
    trainer = (sft_trainer if task_type == "sft" else online_trainer)(run)
    loader = trainer.get_train_dataloader()
    *_, max_steps = trainer.set_initial_training_values(trainer.args, loader)
    assert steps(spec, len(ROWS)) == math.ceil(max_steps)
