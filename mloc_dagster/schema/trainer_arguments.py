"""Which options the installed trainers know, read from their source: TRL is slow to import."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from types import MappingProxyType

from mloc_dagster.errors import nearest_hint
from mloc_dagster.schema.library_fields import class_fields, library_source
from mloc_dagster.schema.training import Lora, Training

CONFIG_CLASSES: Mapping[str, str] = MappingProxyType(
    {
        "sft": "SFTConfig",
        "lora_sft": "SFTConfig",
        "dpo": "DPOConfig",
        "kto": "KTOConfig",
        "reward": "RewardConfig",
        "grpo": "GRPOConfig",
        "rloo": "RLOOConfig",
    }
)
"""TRL's config of each task type. `ppo` has none: TRL 1.16 has no PPO."""

PPO_ARGUMENTS = frozenset(
    {
        "num_ppo_epochs",
        "num_mini_batches",
        "mini_batch_size",
        "total_episodes",
        "cliprange",
        "cliprange_value",
        "vf_coef",
        "gamma",
        "lam",
        "kl_coef",
        "adaptive_kl",
        "kl_target",
        "kl_horizon",
        "whiten_rewards",
        "whiten_advantages",
        "missing_eos_penalty",
        "target_kl",
        "kl_estimator",
    }
)
"""What the task type `ppo` takes besides the fields of `Training`."""

OURS = frozenset({"save_model", "num_processes"})
"""What stands in `training` and no trainer sees."""

NOT_PPOS = frozenset({"packing", "deepspeed", "beta", "loss_type"})
"""Fields of `Training` that mean nothing to PPO."""

_HUB = "weights are published by the task's output, not by the trainer"
_EVALUATION = "measuring is described in the block `evaluation`"
_ROWS = "rows are described in the block `data`, and read before the trainer starts"
_MODEL = "the model is described in the block `model`"
_PHASE = "a training task trains, and nothing else"

OWNED: Mapping[str, str] = MappingProxyType(
    {
        "output_dir": "the task's folder is chosen by mloc",
        "resume_from_checkpoint": "a task that is tried again resumes by itself; to start from "
        "other weights use the block `checkpoint`",
        "logging_dir": "TensorBoard's files go to the task's own logs",
        "local_rank": "processes are started by mloc",
        "do_train": _PHASE,
        "do_eval": _EVALUATION,
        "do_predict": _PHASE,
        "eval_strategy": _EVALUATION,
        "eval_steps": _EVALUATION,
        "eval_delay": _EVALUATION,
        "eval_on_start": _EVALUATION,
        "per_device_eval_batch_size": _EVALUATION,
        "eval_accumulation_steps": _EVALUATION,
        "eval_do_concat_batches": _EVALUATION,
        "eval_packing": _EVALUATION,
        "eval_use_gather_object": _EVALUATION,
        "batch_eval_metrics": _EVALUATION,
        "bf16_full_eval": _EVALUATION,
        "fp16_full_eval": _EVALUATION,
        "include_for_metrics": _EVALUATION,
        "num_generations_eval": _EVALUATION,
        "prediction_loss_only": _EVALUATION,
        "load_best_model_at_end": _EVALUATION,
        "metric_for_best_model": _EVALUATION,
        "greater_is_better": _EVALUATION,
        "dataset_text_field": _ROWS,
        "dataset_kwargs": _ROWS,
        "model_init_kwargs": _MODEL,
        "trust_remote_code": _MODEL,
        "push_to_hub": _HUB,
        "hub_token": _HUB,
        "hub_private_repo": _HUB,
        "hub_model_id": _HUB,
        "hub_strategy": _HUB,
        "hub_always_push": _HUB,
        "hub_revision": _HUB,
        "log_completions_hub_repo": _HUB,
    }
)
"""Options that may not stand in `training`, and why."""


@cache
def trainer_argument_names(task_type: str) -> frozenset[str]:
    """Returns the options of a task type's trainer, those that mloc sets itself included.

    Of a task type with a TRL config: the fields of that config and of those it inherits from; empty
    when TRL is not installed. Of `ppo`: what mloc's own trainer takes.
    """
    if task_type == "ppo":
        return (frozenset(Training.model_fields) | PPO_ARGUMENTS) - NOT_PPOS
    config = CONFIG_CLASSES.get(task_type)
    if config is None:
        return frozenset()
    module = config.removesuffix("Config").lower()
    own = class_fields(library_source("trl", f"trainer/{module}_config.py"), config)
    if not own:
        return frozenset()
    base = class_fields(library_source("trl", "trainer/base_config.py"), "_BaseConfig")
    root = class_fields(library_source("transformers", "training_args.py"), "TrainingArguments")
    return own | base | root


@cache
def lora_argument_names() -> frozenset[str]:
    """Returns the fields of `peft.LoraConfig`; empty when PEFT is not installed."""
    own = class_fields(library_source("peft", "tuners/lora/config.py"), "LoraConfig")
    return own | frozenset(Lora.model_fields) if own else own


def refused_argument(task_type: str, name: str) -> str | None:
    """Returns why an option may not stand in a task's `training`; None when it may.

    Without TRL only the options that mloc sets itself are refused: the workers may have TRL.
    """
    if name in OWNED:
        return f"{name!r} does not belong here: {OWNED[name]}"
    known = trainer_argument_names(task_type)
    if not known or name in known or name in OURS:
        return None
    trainer = CONFIG_CLASSES.get(task_type, "its trainer")
    allowed = known - OWNED.keys()
    return f"{task_type} ({trainer}) has no option {name!r}{nearest_hint(name, allowed)}"
