"""vLLM as templates see it: its arguments, and what it refuses before anything runs."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from functools import cache
from types import MappingProxyType
from typing import ClassVar

from pydantic import ConfigDict, Field, JsonValue

from mloc_dagster.errors import nearest_hint
from mloc_dagster.schema import (
    Block,
    Demand,
    EngineType,
    LibraryOptions,
    Path,
    Refusal,
    class_fields,
    is_plain,
    library_source,
)

MAX_LOGPROBS = 20
"""What vLLM allows unless its argument `max_logprobs` says otherwise."""

DTYPES: Mapping[str, str] = MappingProxyType(
    {
        "auto": "auto",
        "half": "float16",
        "float16": "float16",
        "bfloat16": "bfloat16",
        "float": "float32",
        "float32": "float32",
    }
)
"""What vLLM calls a precision of weights → what torch calls it."""

_OURS = {
    "model": "the model is named in model.source",
    "revision": "the revision stands in model.source",
}

_NO_WORDS: frozenset[str] = frozenset()

_SAFE: Mapping[str, frozenset[str] | None] = MappingProxyType(
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
        "dtype": frozenset(DTYPES),
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
        "lora_dtype": frozenset(DTYPES),
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
        "served_model_name": None,
        "skip_mm_profiling": _NO_WORDS,
        "stream_interval": _NO_WORDS,
        "tensor_parallel_size": _NO_WORDS,
        "tokenizer_mode": frozenset({"auto", "hf", "slow", "mistral"}),
        "trust_remote_code": _NO_WORDS,  # the operator decides by MLOC_TRUST_REMOTE_CODE
        "use_tqdm_on_load": _NO_WORDS,
        # Words for what vLLM has; plug-ins have arguments of their own.
        "reasoning_parser": None,
        "tool_call_parser": None,
    }
)
"""Arguments that can name no code, file or host, each with the words that it may have."""


def _allows(path: Path, value: JsonValue) -> bool:
    name = str(path[0])
    return name in _SAFE and is_plain(value, _SAFE[name])


class VllmOptions(Block):
    """vLLM's engine arguments, verbatim; `dtype` and `max_model_len` hold on others, too."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, JsonValue] = Field(init=False)  # pyright: ignore[reportIncompatibleVariableOverride]

    block_marker: ClassVar[object] = LibraryOptions(_allows)

    tool_call_parser: str = "auto"
    """Which of vLLM's parsers finds the calls of tools in answers, by vLLM's name, such as
    `hermes`; `auto` knows it by the model's family, and `none` finds none."""

    reasoning_parser: str = "auto"
    """Which of vLLM's parsers tells thoughts from answers, such as `deepseek_r1`; `auto` knows it
    by the model's family, and `none` leaves thoughts in the text."""

    @property
    def arguments(self) -> dict[str, JsonValue]:
        """The arguments, sorted by name."""
        return dict(sorted(self.__pydantic_extra__.items()))


@cache
def argument_names() -> frozenset[str]:
    """Returns the fields of vLLM's `EngineArgs`; empty when vLLM is not installed."""
    return frozenset(class_fields(library_source("vllm", "engine/arg_utils.py"), "EngineArgs"))


PARSERS: Mapping[str, str] = MappingProxyType(
    {
        "tool_call_parser": "tool_parsers/__init__.py",
        "reasoning_parser": "reasoning/__init__.py",
    }
)
"""The options that name a parser, and where vLLM lists those."""

NO_PARSER, AUTO_PARSER = "none", "auto"

OWN_TEMPLATE_PARSER = "hf"
"""vLLM's parser that goes by the tokenizer's own response template."""


@cache
def parser_names(option: str) -> frozenset[str]:
    """Returns the parsers that one of `PARSERS` may name; empty when vLLM is not installed."""
    source = library_source("vllm", PARSERS[option])
    tables = (
        node.value
        for node in ast.parse(source).body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict)
    )
    keys = (key for table in tables for key in table.keys)
    return frozenset(str(key.value) for key in keys if isinstance(key, ast.Constant))


def _shares(options: VllmOptions) -> Mapping[str, JsonValue]:
    given = options.arguments
    dtype, most = DTYPES.get(str(given.get("dtype"))), given.get("max_model_len")
    shared: dict[str, JsonValue] = {} if dtype is None else {"dtype": dtype}
    return {**shared, "max_model_len": most} if isinstance(most, int) and most > 0 else shared


def _refuses(options: VllmOptions, demand: Demand) -> Iterator[Refusal]:
    given = options.arguments
    yield from _unknown_arguments(given)
    dtype = given.get("dtype")
    if dtype is not None and (not isinstance(dtype, str) or dtype not in DTYPES):
        reason = f"unknown precision {dtype!r}{nearest_hint(str(dtype), DTYPES)}"
        yield Refusal(("dtype",), reason)
    most = given.get("max_logprobs", MAX_LOGPROBS)
    if demand.certain and isinstance(most, int) and 0 <= most < (demand.logprobs or 0):
        reason = f"inference.logprobs asks for {demand.logprobs}, and max_logprobs allows {most}"
        yield Refusal(("max_logprobs",), reason)
    yield from _parsers(options, demand)
    if demand.possible:
        yield from _parallelism(given, demand)


def _parsers(options: VllmOptions, demand: Demand) -> Iterator[Refusal]:
    for option in PARSERS:
        name, known = getattr(options, option), parser_names(option)
        brought = f"{option}_plugin" in options.arguments
        if known and not brought and name not in (NO_PARSER, AUTO_PARSER) and name not in known:
            hint = nearest_hint(name, (*known, NO_PARSER, AUTO_PARSER))
            yield Refusal((option,), f"vLLM has no parser {name!r}{hint}")
    tools, thoughts = options.tool_call_parser, options.reasoning_parser
    own = [each for each in (tools, thoughts) if each not in (NO_PARSER, AUTO_PARSER)]
    if OWN_TEMPLATE_PARSER in own and len(set(own)) > 1:
        reason = f"{OWN_TEMPLATE_PARSER!r} reads a whole answer: no other parser stands beside it"
        yield Refusal(("reasoning_parser",), reason)
    if not demand.certain:
        return
    if demand.calls_tools and tools == NO_PARSER:
        yield Refusal(("tool_call_parser",), "inference.tools need a parser of calls")
    if demand.forces_calls and tools == OWN_TEMPLATE_PARSER:
        reason = f"{tools!r} cannot hold answers to calls, as inference.tool_choice asks for"
        yield Refusal(("tool_call_parser",), reason)


def _unknown_arguments(given: Mapping[str, JsonValue]) -> Iterator[Refusal]:
    known = argument_names()  # without vLLM nothing is checked: the workers may have it
    for name in given:
        if name in _OURS:
            yield Refusal((name,), f"{name!r} does not belong here: {_OURS[name]}", at_key=True)
        elif known and name not in known:
            hint = nearest_hint(name, known)
            yield Refusal((name,), f"vLLM has no engine argument {name!r}{hint}", at_key=True)


def _parallelism(given: Mapping[str, JsonValue], demand: Demand) -> Iterator[Refusal]:
    """Yields numbers of processes that no worker could start."""
    copies = _count(given, "data_parallel_size")
    if copies > 1:
        reason = (
            f"one engine is one copy of the model, not {copies}: for data parallelism start "
            "several workers instead, shards spread over them"
        )
        yield Refusal(("data_parallel_size",), reason)
    tensor, pipeline = (
        _count(given, "tensor_parallel_size"),
        _count(given, "pipeline_parallel_size"),
    )
    if demand.gpus and not demand.enforce_cpu and tensor * pipeline > demand.gpus:
        name = "tensor_parallel_size" if tensor > 1 else "pipeline_parallel_size"
        reason = (
            f"the model wants {tensor * pipeline} GPUs (tensor_parallel_size {tensor} × "
            f"pipeline_parallel_size {pipeline}), and resources.hardware.gpu.count asks for "
            f"{demand.gpus}"
        )
        yield Refusal((name,), reason)


def _count(given: Mapping[str, JsonValue], name: str) -> int:
    value = given.get(name)
    return value if isinstance(value, int) else 1  # what is no number vLLM itself refuses


_QUANTISED = "model.vllm.quantization: bitsandbytes"

VLLM = EngineType(
    name="vllm",
    label="vLLM",
    options=VllmOptions,
    loader="mloc_dagster.executors.engines.vllm.loader:VllmLoader",
    abilities=frozenset(
        {"generate", "embed", "score", "images", "adapters", "guided", "logprobs", "tools"}
    ),
    order=10,
    chosen_for_cpu=False,
    instead={"load_in_4bit": _QUANTISED, "load_in_8bit": _QUANTISED},
    shares=_shares,
    takes=frozenset({"dtype"}),
    refuses=_refuses,
)
