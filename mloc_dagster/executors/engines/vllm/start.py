"""Starting a vLLM engine from a template's `model` block."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mloc_dagster.errors import (
    MissingExtraError,
    NoRoomError,
    TerminalError,
    TransientError,
    nearest_hint,
)
from mloc_dagster.executors.engines.vllm.engine_type import VLLM, VllmOptions
from mloc_dagster.executors.engines.vllm.process import (
    TURN,
    announce,
    kept_process_state,
    one_line,
    only_readable_modules,
    prepare_environment,
    vllm_build,
    vllm_version,
)
from mloc_dagster.executors.model_source import (
    clear_load_errors,
    hub_commit,
    model_place,
    trusts_remote_code,
)
from mloc_dagster.schema import Model, ModelSource, ModelSpec, shared_options

CPU_CACHE_BYTES = 1 << 30
"""Key-value cache on a CPU, where vLLM would take most of the machine's memory."""

PROCESS_ENDED = "Engine core initialization failed"
"""All that vLLM says, in this process, of what went wrong in the engine's own."""

PARALLEL = ("tensor_parallel_size", "pipeline_parallel_size")


@dataclass(frozen=True, slots=True)
class EnginePlan:
    """How an engine is started, and started again.

    Attributes:
        source: The template's model.
        place: The folder or hub id that is really loaded.
        arguments: vLLM's engine arguments.
        notes: What the template asks for and this machine does another way, for the task's log.
        given: Those of the arguments that the template gives itself.
    """

    source: ModelSource
    place: str
    arguments: Mapping[str, Any]
    notes: tuple[str, ...] = ()
    given: Mapping[str, Any] = field(default_factory=dict)

    @property
    def on_cpu(self) -> bool:
        """Whether it runs on the CPU."""
        return vllm_build() == "cpu"

    def with_arguments(self, **more: Any) -> EnginePlan:
        """Returns the same plan with more arguments; those of the template stay."""
        return replace(self, arguments={**more, **self.arguments})


def plan_engine(spec: ModelSpec, **extra: Any) -> EnginePlan:
    """Returns how the model of a task is started: the template's `model.vllm` over our defaults.

    Args:
        spec: The task.
        extra: Engine arguments that the task type needs, such as `runner="pooling"`.

    Raises:
        MissingExtraError: If vLLM is not installed.
        TerminalError: If the model's folder does not exist, it brings code that may not run, or
            it wants more GPUs than there are.
    """
    build = vllm_build()
    if build is None:
        raise MissingExtraError("inference with vLLM", "vllm")
    source, given = spec.model.source, _given_arguments(spec.model)
    place = model_place(source)
    asked = bool(given.pop("trust_remote_code", False))
    arguments: dict[str, Any] = {
        "disable_log_stats": True,
        "use_tqdm_on_load": False,
        "scheduling_policy": "priority",  # what somebody waits for goes before rows that wait
        **extra,
    }
    if commit := hub_commit(source):
        arguments["revision"] = commit
    notes: tuple[str, ...] = ()
    if build == "cpu":
        notes = _drop_parallel(given) + _drop_sleep_mode(given)
        arguments |= _cpu_defaults(place)
        if "max_num_batched_tokens" not in given:
            # Steps that any prompt fits into; `PromptSteps` has them read in pieces even so.
            arguments["enable_chunked_prefill"] = False
    else:
        if spec.enforce_cpu:
            raise TerminalError("vLLM's CUDA build runs on GPUs only, and enforce_cpu forbids one")
        arguments["tensor_parallel_size"] = _tensor_parallel_size(spec, given)
    arguments |= given
    arguments["model"] = place
    arguments["trust_remote_code"] = trusts_remote_code(source, asked=asked)
    return EnginePlan(source, place, arguments, notes, given)


def _given_arguments(model: Model) -> dict[str, Any]:
    """Returns the arguments of the template; those of other engines' blocks that hold here, too."""
    shared = {name: each for name, each in shared_options(model, VLLM).items() if each != "auto"}
    return {**shared, **model.options(VLLM.name, VllmOptions).arguments}


def read_model(plan: EnginePlan) -> tuple[Any, Any]:
    """Returns what vLLM knows of a model before it is loaded: its `ModelConfig`, and its tokenizer.

    Raises:
        TerminalError: If vLLM refuses the model or an argument.
        TransientError: If the hub cannot be reached.
    """
    prepare_environment()
    from vllm import EngineArgs
    from vllm.tokenizers import cached_tokenizer_from_config

    _check_names(plan.arguments, EngineArgs)
    with clear_load_errors(plan.source), _clear_refusals():
        config = EngineArgs(**plan.arguments).create_model_config()
        return config, cached_tokenizer_from_config(config)


def start_engine(plan: EnginePlan) -> Any:
    """Starts an engine; see `process.shut_down` for its end.

    Returns:
        vLLM's `LLMEngine`.

    Raises:
        MemoryError: If it does not fit into memory beside what is there.
        NoRoomError: If its process ended, and that may be why.
        TerminalError: If vLLM refuses the model or an argument.
        TransientError: If the hub cannot be reached, or the engine's process ended.
    """
    prepare_environment()
    from vllm import EngineArgs
    from vllm.usage.usage_lib import UsageContext
    from vllm.v1.engine.llm_engine import LLMEngine

    _check_names(plan.arguments, EngineArgs)
    with ExitStack() as around:
        if plan.on_cpu:
            around.enter_context(TURN.held())
            around.enter_context(only_readable_modules())
        around.enter_context(clear_load_errors(plan.source))
        around.enter_context(_clear_refusals())
        around.enter_context(kept_process_state())
        # As `vllm.LLM` does: without a context, steps have room for few requests and tokens.
        return announce(
            LLMEngine.from_engine_args(
                EngineArgs(**plan.arguments), usage_context=UsageContext.LLM_CLASS
            )
        )


def _cpu_defaults(place: str) -> dict[str, Any]:
    defaults: dict[str, Any] = {
        "enforce_eager": True,
        "kv_cache_memory_bytes": CPU_CACHE_BYTES,
    }
    config = Path(place) / "config.json"
    if config.is_file():
        stored = json.loads(config.read_text())
        if (stored.get("dtype") or stored.get("torch_dtype")) == "float32":
            # vLLM's `auto` would round these weights, and answers would depend on their batch.
            defaults["dtype"] = "float32"
    return defaults


def _drop_parallel(given: dict[str, Any]) -> tuple[str, ...]:
    dropped = {name: given.pop(name) for name in PARALLEL if given.get(name, 1) != 1}
    return tuple(
        f"model.vllm.{name}: {value} is for GPUs; on this CPU one process does the work"
        for name, value in dropped.items()
    )


def _drop_sleep_mode(given: dict[str, Any]) -> tuple[str, ...]:
    if not given.pop("enable_sleep_mode", False):
        return ()
    return ("model.vllm.enable_sleep_mode is for GPUs; on this CPU an evicted model is unloaded",)


def _tensor_parallel_size(spec: ModelSpec, given: Mapping[str, Any]) -> int:
    import torch

    pipeline = int(given.get("pipeline_parallel_size", 1))
    asked = max(1, spec.resources.hardware.gpu.count // pipeline)
    tensor = int(given.get("tensor_parallel_size", asked))
    visible = torch.cuda.device_count()  # by NVML: it must not initialise CUDA in this process
    if tensor * pipeline > visible:
        raise TerminalError(
            f"the model wants {tensor * pipeline} GPUs (tensor_parallel_size {tensor} × "
            f"pipeline_parallel_size {pipeline}), and this worker has {visible}"
        )
    return tensor


def _check_names(arguments: Mapping[str, Any], known: Any) -> None:
    names = set(known.__dataclass_fields__)
    for name in arguments:
        if name not in names:
            raise TerminalError(
                f"vLLM {vllm_version()} has no engine argument {name!r} "
                f"(model.vllm){nearest_hint(name, names)}"
            )


@contextmanager
def _clear_refusals() -> Iterator[None]:
    """Turns what vLLM raises about arguments, memory and dead processes into one clear line."""
    from pydantic import ValidationError

    try:
        yield
    except ValidationError as error:
        wrong = "; ".join(
            f"{'.'.join(map(str, each['loc'])) or 'arguments'}: "
            f"{each['msg'].removeprefix('Value error, ')}"
            for each in error.errors(include_url=False, include_input=False)
        )
        raise TerminalError(f"vLLM refuses model.vllm: {wrong}") from error
    except (TypeError, AssertionError, NotImplementedError) as error:
        raise TerminalError(f"vLLM refuses model.vllm: {one_line(error)}") from error
    except ValueError as error:
        if "memory" in str(error).lower():
            raise MemoryError(f"vLLM needs more memory than there is: {one_line(error)}") from error
        raise
    except RuntimeError as error:
        if "out of memory" in str(error).lower():
            raise
        if PROCESS_ENDED in str(error):
            raise NoRoomError(
                "the vLLM engine did not start; its process ended, for want of memory or for a "
                f"reason that it printed: {one_line(error)}"
            ) from error
        raise TransientError(f"the vLLM engine did not start: {one_line(error)}") from error
