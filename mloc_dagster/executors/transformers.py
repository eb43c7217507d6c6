"""The inference task type on transformers, on CPU and on CUDA.

Rows are read ahead in windows, rendered, tokenised in bulk, sorted by length and generated in
batches. Which rows share a batch changes no answer on purpose; what remains is the rounding of
the matrix products, which depends on a batch's shape (see `sampling`).
"""

from __future__ import annotations

import importlib.util
import json
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from mloc_dagster.errors import TaskCancelled
from mloc_dagster.executors.base import ModelKey, ShardContext, ShardInput
from mloc_dagster.executors.batch_run import BatchRunner
from mloc_dagster.executors.batches import Request, make_batches
from mloc_dagster.executors.prompts import render_chat, render_plain
from mloc_dagster.executors.transformers_model import LoadedModel, load_model
from mloc_dagster.results.rows import InputRow, OutputRow
from mloc_dagster.schema.inference import Inference
from mloc_dagster.schema.model import ModelSource
from mloc_dagster.schema.task import InferenceSpec

WINDOW_ROWS = 2048  # long enough to sort by length, short enough for bounded memory
LOADING_OPTIONS = {"device_map", "dtype", "attn_implementation", "low_cpu_mem_usage"}


class TransformersExecutor:
    """Generates text for each row with a model that transformers loads."""

    def model_key(self, spec: InferenceSpec) -> ModelKey | None:
        """Returns what identifies the model: source, loading options, adapters and device."""
        model = spec.model
        parts = {
            "source": model.source.model_dump(mode="json"),
            "options": model.transformers.model_dump(mode="json", include=LOADING_OPTIONS),
            "adapters": [adapter.model_dump(mode="json") for adapter in model.adapters],
            "enforce_cpu": spec.enforce_cpu,
            "trust_remote_code": model.transformers.trust_remote_code,
        }
        identity = json.dumps(parts, sort_keys=True)
        return ModelKey("transformers", identity, name=_short_name(model.source))

    def load(self, spec: InferenceSpec) -> LoadedModel:
        """Loads the model; see `transformers_model.load_model` for what may go wrong."""
        return load_model(spec.model, spec.enforce_cpu)

    def unload(self, model: LoadedModel) -> None:
        """Frees the model."""
        model.free()

    def model_bytes(self, model: LoadedModel) -> int:
        """Returns the bytes of the model's weights and buffers."""
        return model.size_bytes

    def run(
        self, shard: ShardInput, spec: InferenceSpec, model: LoadedModel, context: ShardContext
    ) -> None:
        """Generates every row of the shard, emitting the rows of a batch when it ends.

        Raises:
            TaskCancelled: If the task was asked to stop; looked at between tokens.
        """
        context.log(f"engine: {model.engine} on {model.model.device}: {_why(spec)}")
        context.log(f"model: {model.name}, revision {model.revision}")
        inference, options = spec.inference, spec.model.transformers
        seed = shard.seed if inference.seed is None else inference.seed
        runner = BatchRunner(model, inference, seed, context)
        rows = iter(shard.rows)
        while window := list(islice(rows, WINDOW_ROWS)):
            if context.cancelled():
                raise TaskCancelled("stopped between two windows of rows")
            ready = _encode(window, model, inference, context)
            for batch in make_batches(ready, options.max_batch_size, options.max_batch_tokens):
                runner.run(batch)


def _short_name(source: ModelSource) -> str:
    return Path(source.identifier).name if source.type == "local" else source.identifier


def _encode(
    window: list[InputRow], model: LoadedModel, inference: Inference, context: ShardContext
) -> Iterator[Request]:
    """Yields what can be generated; rows that cannot are emitted with their error."""
    started = time.monotonic()
    texts: list[str] = []
    rows: list[InputRow] = []
    for row in window:
        try:
            texts.append(_render(row, model, inference))
            rows.append(row)
        except ValueError as error:
            _refuse(row, str(error), model, context, started)
    if not rows:
        return
    encoded = model.tokenizer(
        texts,
        add_special_tokens=not model.has_chat_template,  # a chat template writes its own
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,
    )["input_ids"]
    for row, tokens in zip(rows, encoded, strict=True):
        room = inference.max_tokens
        if model.max_positions is not None:
            room = min(room, model.max_positions - len(tokens))
        if not tokens:
            _refuse(row, "the prompt is empty: it has no token at all", model, context, started)
        elif room < 1:
            reason = (
                f"the prompt has {len(tokens)} tokens, which leaves no room for a new one: "
                f"{model.name} reads at most {model.max_positions}"
            )
            _refuse(row, reason, model, context, started, len(tokens))
        else:
            for answer in range(inference.n):
                yield Request(row, answer, tokens, room)


def _render(row: InputRow, model: LoadedModel, inference: Inference) -> str:
    if model.has_chat_template:
        return render_chat(model.tokenizer, row.prompt, inference.system_prompt)
    return render_plain(row.prompt, inference.system_prompt)


def _refuse(
    row: InputRow,
    reason: str,
    model: LoadedModel,
    context: ShardContext,
    started: float,
    prompt_tokens: int = 0,
) -> None:
    context.emit(
        OutputRow(
            index=row.index,
            prompt=row.prompt,
            finish_reason="error",
            error=reason,
            prompt_tokens=prompt_tokens,
            latency_s=time.monotonic() - started,
            engine=model.engine,
        )
    )


def _why(spec: InferenceSpec) -> str:
    if spec.model.engine == "transformers":
        return "the template asks for transformers"
    if spec.enforce_cpu:
        return "enforce_cpu rules vLLM out: transformers"
    if importlib.util.find_spec("vllm") is None:
        return "vLLM is not available here: transformers"
    return "this version of mloc does not drive vLLM yet: transformers"
