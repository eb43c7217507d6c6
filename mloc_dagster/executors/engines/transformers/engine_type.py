"""The transformers engine as templates see it."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import JsonValue

from mloc_dagster.schema import EngineType, TransformersOptions


def _shares(options: TransformersOptions) -> Mapping[str, JsonValue]:
    return {"dtype": options.dtype} if "dtype" in options.model_fields_set else {}


TRANSFORMERS = EngineType(
    name="transformers",
    label="transformers",
    options=TransformersOptions,
    loader="mloc_dagster.executors.engines.transformers.engine:TransformersLoader",
    abilities=frozenset({"generate", "embed", "images", "adapters", "guided", "logprobs"}),
    xgrammar_only=True,
    order=100,  # it runs where no other engine does
    runs_anywhere=True,
    claims=("load_in_4bit", "load_in_8bit"),
    shares=_shares,
    takes=frozenset({"dtype", "max_model_len"}),
    batching=frozenset({"max_batch_size", "max_batch_tokens"}),
    placing=frozenset({"low_cpu_mem_usage", "device_map"}),
)
