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

_DTYPES = frozenset({"auto", "half", "float16", "bfloat16", "float", "float32"})

_VLLM: Mapping[str, frozenset[str] | None] = MappingProxyType(
    {
        "async_scheduling": _NO_WORDS,
        "block_size": _NO_WORDS,
        "convert": frozenset({"auto", "none", "embed", "classify"}),
        "cpu_offload_gb": _NO_WORDS,
        "data_parallel_size": _NO_WORDS,
        "disable_cascade_attn": _NO_WORDS,
        "disable_chunked_mm_input": _NO_WORDS,
        "disable_custom_all_reduce": _NO_WORDS,
        "disable_hybrid_kv_cache_manager": _NO_WORDS,
        "disable_log_stats": _NO_WORDS,
        "disable_sliding_window": _NO_WORDS,
        "distributed_executor_backend": frozenset({"mp", "uni"}),
        "dtype": _DTYPES,
        "enable_chunked_prefill": _NO_WORDS,
        "enable_expert_parallel": _NO_WORDS,
        "enable_lora": _NO_WORDS,
        "enable_prefix_caching": _NO_WORDS,
        "enable_sleep_mode": _NO_WORDS,
        "enforce_eager": _NO_WORDS,
        "fully_sharded_loras": _NO_WORDS,
        "generation_config": frozenset({"auto", "vllm"}),
        "gpu_memory_utilization": _NO_WORDS,
        "kv_cache_dtype": frozenset(
            {"auto", "float16", "bfloat16", "fp8", "fp8_e4m3", "fp8_e5m2", "fp8_inc"}
        ),
        "kv_cache_memory_bytes": _NO_WORDS,
        "limit_mm_per_prompt": _NO_WORDS,
        "load_format": frozenset({"auto", "safetensors", "dummy", "bitsandbytes"}),
        "logprobs_mode": frozenset(
            {"raw_logprobs", "raw_logits", "processed_logprobs", "processed_logits"}
        ),
        "long_prefill_token_threshold": _NO_WORDS,
        "lora_dtype": _DTYPES,
        "max_cpu_loras": _NO_WORDS,
        "max_logprobs": _NO_WORDS,
        "max_lora_rank": _NO_WORDS,
        "max_loras": _NO_WORDS,
        "max_model_len": frozenset({"auto"}),
        "max_num_batched_tokens": _NO_WORDS,
        "max_num_seqs": _NO_WORDS,
        "max_parallel_loading_workers": _NO_WORDS,
        "mm_processor_cache_gb": _NO_WORDS,
        "num_gpu_blocks_override": _NO_WORDS,
        "optimization_level": _NO_WORDS,
        "performance_mode": frozenset({"balanced", "interactivity", "throughput"}),
        "pipeline_parallel_size": _NO_WORDS,
        "quantization": frozenset(
            {
                *("awq", "awq_marlin", "bitsandbytes", "compressed-tensors", "fp8", "gguf"),
                *("gptq", "gptq_marlin", "modelopt", "mxfp4"),
            }
        ),
        "runner": frozenset({"auto", "generate", "pooling"}),
        "scheduling_policy": frozenset({"fcfs", "priority"}),
        "seed": _NO_WORDS,
        "served_model_name": _ANY,
        "skip_mm_profiling": _NO_WORDS,
        "stream_interval": _NO_WORDS,
        "tensor_parallel_size": _NO_WORDS,
        "tokenizer_mode": frozenset({"auto", "hf", "slow", "mistral"}),
        "trust_remote_code": _NO_WORDS,  # the operator decides by MLOC_TRUST_REMOTE_CODE
        "use_tqdm_on_load": _NO_WORDS,
    }
)
"""vLLM's engine arguments, each with the words that it may have besides numbers and switches."""

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


def _allows_vllm(path: Path, value: JsonValue) -> bool:
    name = str(path[0])
    return name in _VLLM and _plain(value, _VLLM[name])


def _allows_lora(path: Path, value: JsonValue) -> bool:
    name = str(path[0])
    known = len(path) == 1 or name in _PATTERNS or name in _LORA
    return known and _plain(value, _LORA.get(name, _NO_WORDS))


def _allows_training(path: Path, value: JsonValue) -> bool:
    name = str(path[0])
    if name == "deepspeed":
        return len(path) > 1 and path[1] in _DEEPSPEED and _plain(value, _DEEPSPEED_WORDS)
    named = [each for each in path[1:] if isinstance(each, str)]
    return (not named or name in _NESTED) and _plain(value, _TRAINING.get(name, _NO_WORDS))


def _plain(value: JsonValue, words: frozenset[str] | None) -> bool:
    """Tells whether a value is a number, a switch, nothing, or one of the words."""
    if not isinstance(value, str):
        return True
    known = words is None or value in words
    return known or value.lower() in ("true", "false") or _NUMBER.fullmatch(value) is not None


VLLM_OPTIONS = LibraryOptions(_allows_vllm)
TRAINING_OPTIONS = LibraryOptions(_allows_training)
LORA_OPTIONS = LibraryOptions(_allows_lora)
