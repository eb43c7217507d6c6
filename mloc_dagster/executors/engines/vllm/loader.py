"""Loading models into vLLM: can it run here, and what exactly would answer?"""

from __future__ import annotations

import os
from collections.abc import Mapping

from pydantic import JsonValue

from mloc_dagster.executors.engines.protocol import Engine, EngineLoader, OptionsIdentity
from mloc_dagster.executors.engines.vllm.engine_type import VllmOptions
from mloc_dagster.executors.engines.vllm.process import vllm_build
from mloc_dagster.executors.model_source import is_commit, paths_in
from mloc_dagster.schema import EmbeddingSpec, Model, ModelSpec, changed_options

BLOCK_TOKENS = 16
"""vLLM's block of the prefix cache on GPUs, where the template names no `block_size`."""

CPU_BLOCK_TOKENS = 128
"""The same of vLLM's CPU build."""

_NAMES_OTHER_CONTENT = frozenset(
    (
        # Weights, tokenizers and configurations of another place.
        *("model_weights", "tokenizer", "tokenizer_revision", "hf_config_path"),
        *("generation_config", "model_loader_extra_config", "default_mm_loras"),
        *("speculative_config", "spec_model", "weight_transfer_config"),
        # Code by its name, which says nothing of its version.
        *("code_revision", "logits_processors", "model_class_overrides", "scheduler_cls"),
        *("worker_cls", "worker_extension_cls", "distributed_executor_backend"),
        *("io_processor_plugin", "reasoning_parser_plugin"),
        # States that other engines computed.
        *("kv_transfer_config", "ec_transfer_config", "kv_offloading_backend"),
        # The same, as fields of an argument.
        *("compilation_config.backend", "compilation_config.inductor_passes"),
        "ec_manager_config.encoder_cache_manager_cls",
        "structured_outputs_config.reasoning_parser_plugin",
    )
)
"""Engine arguments of vLLM 0.32 that may name what changes under the same name."""

_PARTS: dict[str, tuple[str, ...]] = {
    "compilation_config.backend": ("eager", "inductor"),
    "distributed_executor_backend": ("mp", "uni", "ray", "external_launcher"),
    "generation_config": ("auto", "vllm"),  # auto is the model's own
    "kv_offloading_backend": ("native",),
    "worker_cls": ("auto",),
}
_NOT_READ = {"allowed_local_media_path", "download_dir"}  # folders that are not the model's


class VllmLoader(EngineLoader):
    """Loads models for text, for vectors or for scores."""

    def load(self, spec: ModelSpec) -> Engine:
        """Starts vLLM with the model of a task; see `start.start_engine` for what may go wrong."""
        if isinstance(spec, EmbeddingSpec):
            from mloc_dagster.executors.engines.vllm.pooling import load_engine

            return load_engine(spec)
        if spec.ability == "score":
            from mloc_dagster.executors.engines.vllm import scoring

            return scoring.load_engine(spec)
        from mloc_dagster.executors.engines.vllm import engine

        return engine.load_engine(spec)

    def installed(self) -> bool:
        """Tells whether a build of vLLM is on this machine."""
        return vllm_build() is not None

    def obstacle(self, spec: ModelSpec) -> str | None:
        """Returns why vLLM cannot run here.

        It can where its CUDA build meets a GPU, or its CPU build a machine without one.
        """
        build = vllm_build()
        if build is None:
            return "vLLM is not installed here"
        if build == "cpu":
            if not spec.enforce_cpu and _has_gpu():
                return (
                    "vLLM's CPU build is installed, which would leave the GPU of this machine idle"
                )
            return None
        if spec.enforce_cpu:
            return "vLLM's CUDA build is installed, which needs a GPU, and enforce_cpu forbids one"
        return None if _has_gpu() else "vLLM's CUDA build is installed, and there is no GPU here"

    def reason(self, spec: ModelSpec) -> str:
        """Returns which build meets which hardware."""
        if vllm_build() == "cpu":
            return "its CPU build is installed, and there is no GPU"
        return "its CUDA build is installed, and there is a GPU"

    def identity(self, model: Model) -> OptionsIdentity:
        """Returns all arguments, and the one that may name what changes under the same name."""
        options = model.options(self.engine.name, VllmOptions)
        given = options.arguments
        names = sorted(_NAMES_OTHER_CONTENT)
        unknown = (each for each in names if not _is_known(each, _argument(given, each)))
        read = {name: given[name] for name in given.keys() - _NOT_READ}
        parsers = changed_options(options, given.keys())
        return OptionsIdentity({**given, **parsers}, tuple(paths_in(read)), next(unknown, None))

    def prefix_block_tokens(self, spec: ModelSpec) -> int:
        """Returns the tokens of a block of the prefix cache; 0 where the template has none."""
        given = spec.model.options(self.engine.name, VllmOptions).arguments
        if given.get("enable_prefix_caching") is False:
            return 0
        size = given.get("block_size")
        if isinstance(size, int):
            return size
        return CPU_BLOCK_TOKENS if vllm_build() == "cpu" else BLOCK_TOKENS


def _has_gpu() -> bool:
    # Read when torch is imported: its C++ part warns of what vLLM does with memory on purpose.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    import torch

    return torch.cuda.is_available()


def _argument(arguments: Mapping[str, JsonValue], name: str) -> JsonValue:
    """Returns an argument, or a field of one: `compilation_config.backend`."""
    argument, _, field = name.partition(".")
    value = arguments.get(argument)
    if not field:
        return value
    return value.get(field) if isinstance(value, dict) else None


def _is_known(name: str, value: JsonValue) -> bool:
    """Tells whether all that an engine argument names is on this disk, a commit, or vLLM's own."""
    if value is None or value == "" or value in _PARTS.get(name, ()):
        return True
    if isinstance(value, str):
        return (
            is_commit(value) if name.endswith("_revision") else any(True for _ in paths_in(value))
        )
    if isinstance(value, list):
        return all(_is_known(name, each) for each in value)
    if isinstance(value, dict):
        # A draft's other fields say how it is used; without one, the method may be anybody's code.
        named = [value.get("model") or "?"] if name == "speculative_config" else value.values()
        return all(_is_known(name, each) for each in named)
    return True  # a number names nothing
