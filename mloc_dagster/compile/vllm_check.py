"""Does the installed vLLM know the arguments that a template gives it, and can it start by them?"""

from __future__ import annotations

from collections.abc import Iterator

from mloc_dagster.compile.diagnostics import Findings, at_key
from mloc_dagster.compile.spelling import find
from mloc_dagster.compile.tree import Tree
from mloc_dagster.errors import nearest_hint
from mloc_dagster.schema.engines import Refusal
from mloc_dagster.schema.task import ModelSpec
from mloc_dagster.schema.vllm_arguments import vllm_argument_names

OURS = {
    "model": "the model is named in model.source",
    "revision": "the revision stands in model.source",
}


def check_vllm_arguments(spec: Tree, findings: Findings) -> None:
    """Adds an error for each key of `model.vllm` that is no engine argument.

    Without vLLM nothing is checked: the workers may have it.

    Args:
        spec: A task's spec as it was written, merged with its base.
        findings: Takes the errors.
    """
    block = find(spec, ("model", "vllm"))
    if block is None or not block.fields:
        return
    known = vllm_argument_names()
    for name, value in block.fields.items():
        if name in OURS:
            findings.add(at_key(value, f"{name!r} does not belong here: {OURS[name]}"))
        elif known and name not in known:
            hint = nearest_hint(name, known)
            findings.add(at_key(value, f"vLLM has no engine argument {name!r}{hint}"))


def refused_parallelism(spec: ModelSpec) -> Iterator[Refusal]:
    """Yields numbers of processes in `model.vllm` that no worker could start, with their place.

    Args:
        spec: A task that may run on vLLM.
    """
    copies = _count(spec, "data_parallel_size")
    if copies > 1:
        reason = (
            f"one engine is one copy of the model, not {copies}: for data parallelism start "
            "several workers instead, shards spread over them"
        )
        yield ("vllm", "data_parallel_size"), reason
    tensor = _count(spec, "tensor_parallel_size")
    pipeline = _count(spec, "pipeline_parallel_size")
    given = spec.resources.hardware.gpu.count
    if given and not spec.enforce_cpu and tensor * pipeline > given:
        name = "tensor_parallel_size" if tensor > 1 else "pipeline_parallel_size"
        reason = (
            f"the model wants {tensor * pipeline} GPUs (tensor_parallel_size {tensor} × "
            f"pipeline_parallel_size {pipeline}), and resources.hardware.gpu.count asks for {given}"
        )
        yield ("vllm", name), reason


def _count(spec: ModelSpec, name: str) -> int:
    value = spec.model.vllm.get(name)
    return value if isinstance(value, int) else 1  # what is no number vLLM itself refuses
