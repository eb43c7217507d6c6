"""Which options trainers take, and what a spec becomes for TRL."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

trl = pytest.importorskip("trl")
torch = pytest.importorskip("torch")

from mloc_dagster.errors import TerminalError
from mloc_dagster.executors.training.arguments import config_arguments
from mloc_dagster.schema import (
    OWNED,
    PPO_ARGUMENTS,
    DpoSpec,
    PpoSpec,
    SftSpec,
    TrainingSpec,
    find_task_type,
    lora_argument_names,
    refused_argument,
    refused_value,
    task_types,
    trainer_argument_names,
)
from mloc_dagster.schema.training import library_options

METHODS = {
    name: each.spec.method
    for name, each in task_types().items()
    if issubclass(each.spec, TrainingSpec)
}
OF_TRL = {name: each for name, each in METHODS.items() if each.config is not None}


def spec_of(task_type: str, training: dict[str, Any] | None = None, **more: Any) -> TrainingSpec:
    if task_type in ("grpo", "rloo"):
        more.setdefault("rewards", [{"name": "contains"}])
    spec = find_task_type(task_type).spec.model_validate(
        {
            "taskType": task_type,
            "model": {"source": {"type": "builtin", "identifier": "tiny-chat"}},
            "data": {"rows": [{"text": "a"}]},
            "training": training or {},
            **more,
        }
    )
    assert isinstance(spec, TrainingSpec)
    return spec


def arguments(spec: TrainingSpec, log: Callable[[str], None] = print) -> dict[str, Any]:
    return config_arguments(spec, Path("out"), log)


def config(spec: TrainingSpec) -> Any:
    return getattr(trl, str(spec.method.config))(**arguments(spec))


def refused(spec: TrainingSpec) -> str:
    with pytest.raises(TerminalError) as caught:
        arguments(spec)
    return str(caught.value)


@pytest.fixture
def without_packages(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    names = ("_trainer_fields", "_root_fields", "_lora_fields", "_enums", "_loss_types")
    caches = [getattr(library_options, name) for name in names]
    for each in caches:
        each.cache_clear()
    yield
    for each in caches:
        each.cache_clear()


@pytest.mark.parametrize("task_type", sorted(OF_TRL))
def test_the_names_read_from_source_are_those_of_the_class(task_type: str) -> None:
    fields = dataclasses.fields(getattr(trl, str(OF_TRL[task_type].config)))
    assert trainer_argument_names(OF_TRL[task_type]) == {each.name for each in fields if each.init}


def test_loras_names_are_those_of_peft() -> None:
    peft = pytest.importorskip("peft")
    fields = {each.name for each in dataclasses.fields(peft.LoraConfig)}
    assert lora_argument_names() <= fields
    assert {"r", "use_dora", "modules_to_save", "task_type"} <= lora_argument_names()


def test_ppo_has_options_of_its_own() -> None:
    names = trainer_argument_names(PpoSpec.method)
    assert PPO_ARGUMENTS | {"learning_rate", "max_steps", "seed"} <= names
    assert "packing" not in names


@pytest.mark.usefixtures("without_packages")
def test_without_trl_only_our_own_options_are_refused() -> None:
    assert trainer_argument_names(SftSpec.method) == lora_argument_names() == frozenset()
    assert refused_argument(SftSpec.method, "packin") is None
    assert "chosen by mloc" in str(refused_argument(SftSpec.method, "output_dir"))
    assert refused_value(SftSpec.method, "optim", "banana") is None
    assert refused_value(DpoSpec.method, "loss_type", "banana") is None


@pytest.mark.parametrize(
    ("kind", "module"),
    [("OptimizerNames", "training_args"), ("SchedulerType", "trainer_utils")],
)
def test_the_values_read_from_source_are_those_of_the_enumeration(kind: str, module: str) -> None:
    library = importlib.import_module(f"transformers.{module}")
    assert library_options._enums()[kind] == {each.value for each in getattr(library, kind)}


def test_every_option_of_ours_is_the_librarys_or_once_was() -> None:
    known = frozenset[str]().union(*map(trainer_argument_names, OF_TRL.values()))
    assert OWNED.keys() - known == {"logging_dir"}


@pytest.mark.parametrize("name", sorted(OF_TRL))
def test_a_field_of_ours_for_another_method_is_refused(name: str) -> None:
    assert "no option 'num_ppo_epochs'" in refused(spec_of(name, {"num_ppo_epochs": 2}))


def test_what_the_user_leaves_out_is_trls_choice() -> None:
    rates = {name: config(spec_of(name)).learning_rate for name in OF_TRL}
    assert rates["sft"] == 2e-5
    assert rates["dpo"] == 1e-6
    assert rates["reward"] == 1e-4
    assert config(spec_of("sft")).max_length == 1024
    assert config(spec_of("dpo")).beta == 0.1


def test_what_the_schema_promises_holds_all_the_same() -> None:
    made = config(spec_of("sft"))
    assert made.num_train_epochs == 1.0
    assert made.gradient_checkpointing is False


def test_what_the_user_says_arrives_word_for_word() -> None:
    made = config(
        spec_of(
            "dpo", {"learning_rate": 0.25, "beta": 0.0, "loss_type": "ipo", "seed": 7}
        ).model_copy()
    )
    assert (made.learning_rate, made.beta, made.loss_type) == (0.25, 0.0, ["ipo"])
    assert (made.seed, made.data_seed) == (7, 7)
    made = config(spec_of("sft", {"packing": True, "adam_beta2": 0.95, "save_strategy": "no"}))
    assert (made.packing, made.adam_beta2, made.save_strategy) == (True, 0.95, "no")
    assert config(spec_of("sft", {"data_seed": 3})).data_seed == 3


def test_our_own_options_stay_with_us() -> None:
    given = arguments(spec_of("sft", {"save_model": False, "num_processes": 2}))
    assert not {"save_model", "num_processes"} & given.keys()


@pytest.mark.parametrize(
    ("task_type", "option", "expected"),
    [
        ("sft", {"beta": 0.1}, "training.beta: TRL's SFTConfig has no option 'beta'"),
        ("reward", {"packing": True}, "TRL's RewardConfig has no option 'packing'"),
        ("grpo", {"num_generation": 4}, "did you mean 'num_generations'?"),
        ("sft", {"push_to_hub": True}, "published by the task's output"),
        ("kto", {"eval_steps": 5}, "block `evaluation`"),
    ],
)
def test_an_option_that_would_be_ignored_is_refused(
    task_type: str, option: dict[str, Any], expected: str
) -> None:
    assert expected in refused(spec_of(task_type, option))


@pytest.mark.parametrize("task_type", ["grpo", "rloo"])
def test_rollouts_are_sampled_as_the_block_generation_says(task_type: str) -> None:
    generation = {"max_new_tokens": 9, "temperature": 1.5, "top_p": 0.9, "top_k": 5}
    made = config(spec_of(task_type, {}, generation=generation))
    assert made.max_completion_length == 9
    assert (made.temperature, made.top_p, made.top_k) == (1.5, 0.9, 5)
    assert config(spec_of(task_type)).temperature == 0.7


def test_the_length_of_answers_is_said_once() -> None:
    option = {"max_completion_length": 32}
    assert config(spec_of("grpo", option)).max_completion_length == 32
    message = refused(spec_of("grpo", option, generation={"max_new_tokens": 16}))
    assert "generation.max_new_tokens and training.max_completion_length" in message


def test_greedy_rollouts_have_nothing_to_compare() -> None:
    assert "do_sample" in refused(spec_of("grpo", {}, generation={"do_sample": False}))


def test_half_precision_falls_back_on_a_cpu_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    lines: list[str] = []
    given = arguments(spec_of("sft", {"bf16": True}), lines.append)
    assert (given["bf16"], given["fp16"], given["use_cpu"]) == (False, False, True)
    assert lines == ["training.bf16 needs a GPU; there is none, so this trains in float32"]
    arguments(spec_of("sft"), lines.append)
    assert len(lines) == 1  # nobody asked, nobody is told


def test_sharding_is_for_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    lines: list[str] = []
    given = arguments(spec_of("sft", {"deepspeed": {"zero_optimization": {}}}), lines.append)
    assert "deepspeed" not in given
    assert len(lines) == 1


@pytest.mark.parametrize("can", [True, False])
def test_a_gpu_trains_in_bfloat16_if_it_can(monkeypatch: pytest.MonkeyPatch, can: bool) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: can)
    given = arguments(spec_of("sft"))
    assert given["bf16"] is can
    assert "use_cpu" not in given
    assert "bf16" not in arguments(spec_of("sft", {"fp16": True}))
    assert arguments(spec_of("sft", enforce_cpu=True))["use_cpu"] is True


def test_a_required_gpu_that_is_missing_ends_the_task(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "this worker has none" in refused(spec_of("sft", require_gpu=True))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert "enforce_cpu" in refused(spec_of("sft", require_gpu=True, enforce_cpu=True))


def test_checkpointing_is_not_reentrant_unless_told() -> None:
    given = arguments(spec_of("sft", {"gradient_checkpointing": True}))
    assert given["gradient_checkpointing_kwargs"] == {"use_reentrant": False}
    told = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"a": 1}}
    assert arguments(spec_of("sft", told))["gradient_checkpointing_kwargs"] == {"a": 1}
