"""Options of libraries that can name no code, file or host, as marks for their blocks.

Libraries import modules, read files and open connections by what some of their options name. So
a template that comes over the API may set options of these lists; of trainers also any number and
any switch, which name nothing. `MLOC_API_OPTIONS` adds to them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType

from pydantic import JsonValue

from mloc_dagster.schema.markers import LibraryOptions, Path

_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?[kKmMgG]?")
_ANY = None
"""Any text: nothing is looked up by it."""

_NO_WORDS: frozenset[str] = frozenset()

_TRAINING: Mapping[str, frozenset[str] | None] = MappingProxyType(
    {
        "cache_implementation": frozenset({"static", "dynamic", "offloaded", "hybrid"}),
        "eos_token": _ANY,
        "f_divergence_type": frozenset({"reverse_kl", "js_divergence", "alpha_divergence"}),
        "fsdp": frozenset(
            {
                *("full_shard", "shard_grad_op", "no_shard", "hybrid_shard", "auto_wrap"),
                *("offload", "full_shard auto_wrap", "full_shard auto_wrap offload"),
            }
        ),
        "importance_sampling_level": frozenset({"token", "sequence"}),
        "kl_estimator": _ANY,
        "label_names": _ANY,
        "length_column_name": _ANY,
        "log_level": _ANY,
        "logging_strategy": frozenset({"no", "steps", "epoch"}),
        "loss_type": _ANY,  # a name in a table of the trainer's own
        "lr_scheduler_type": _ANY,
        "multi_objective_aggregation": _ANY,
        "optim": _ANY,
        "optim_target_modules": _ANY,
        "packing_strategy": _ANY,
        "pad_token": _ANY,
        "report_to": frozenset({"none"}),
        "run_name": _ANY,
        "save_strategy": _ANY,
        "scale_rewards": frozenset({"group", "batch", "none"}),
        "train_sampling_strategy": _ANY,
        "truncation_mode": _ANY,
        "vllm_mode": frozenset({"colocate"}),
    }
)
"""Trainers' options that may be a word or a list of words; any may be a number or a switch."""

_LORA: Mapping[str, frozenset[str] | None] = MappingProxyType(
    {
        "bias": _ANY,
        "exclude_modules": _ANY,
        "init_lora_weights": frozenset({"gaussian", "olora", "orthogonal", "pissa"}),
        "layers_pattern": _ANY,
        "modules_to_save": _ANY,
        "target_modules": _ANY,  # names of the model's own layers
        "target_parameters": _ANY,
        "task_type": _ANY,
        "trainable_token_indices": _ANY,
    }
)
"""`peft.LoraConfig`'s options that may be a word or a list of words."""

_DEEPSPEED_WORDS = frozenset(
    {
        *("auto", "cpu", "none", "Adam", "AdamW", "WarmupLR", "WarmupDecayLR", "WarmupCosineLR"),
        *("fp16", "bf16", "fp32"),
    }
)
_DEEPSPEED = frozenset(
    {
        *("bf16", "communication_data_type", "fp16", "gradient_accumulation_steps"),
        *("gradient_clipping", "optimizer", "prescale_gradients", "scheduler", "steps_per_print"),
        *("train_batch_size", "train_micro_batch_size_per_gpu", "wall_clock_breakdown"),
        *("zero_allow_untested_optimizer", "zero_force_ds_cpu_optimizer", "zero_optimization"),
    }
)
"""DeepSpeed's sections; others name folders, and services that figures are sent to."""

_NESTED = frozenset({"fsdp_config", "gradient_checkpointing_kwargs", "lr_scheduler_kwargs"})
_PATTERNS = frozenset({"alpha_pattern", "rank_pattern"})


def _allows_lora(path: Path, value: JsonValue) -> bool:
    name = str(path[0])
    known = len(path) == 1 or name in _PATTERNS or name in _LORA
    return known and is_plain(value, _LORA.get(name, _NO_WORDS))


def _allows_training(path: Path, value: JsonValue) -> bool:
    name = str(path[0])
    if name == "deepspeed":
        return len(path) > 1 and path[1] in _DEEPSPEED and is_plain(value, _DEEPSPEED_WORDS)
    if name == "tools":
        return True  # what runs code, and what contacts hosts, has marks of its own there
    named = [each for each in path[1:] if isinstance(each, str)]
    return (not named or name in _NESTED) and is_plain(value, _TRAINING.get(name, _NO_WORDS))


def is_plain(value: JsonValue, words: frozenset[str] | None) -> bool:
    """Tells whether a value is a number, a switch, nothing, or one of the words."""
    if not isinstance(value, str):
        return True
    known = words is None or value in words
    return known or value.lower() in ("true", "false") or _NUMBER.fullmatch(value) is not None


TRAINING_OPTIONS = LibraryOptions(_allows_training)
LORA_OPTIONS = LibraryOptions(_allows_lora)
