"""The model behind tasks that make vectors on the way: the same one as an embedding task's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mloc_dagster.errors import InputError
from mloc_dagster.executors.base import Caller, ModelKey
from mloc_dagster.executors.engines.protocol import Engine
from mloc_dagster.executors.inference import InferenceExecutor, short_name
from mloc_dagster.executors.reuse_identity import loaded_revision
from mloc_dagster.results import InputRow, OutputRow
from mloc_dagster.schema import EmbeddingSpec, IndexSpec, ModelSpec, RetrieveSpec

_INSTRUCTION = " instruction="


def embedding_of(spec: IndexSpec | RetrieveSpec) -> EmbeddingSpec:
    """Returns the embedding task whose vectors these are.

    A model that one of them has loaded, and vectors that one of them has kept, serve all.
    """
    return EmbeddingSpec(
        taskType="embedding",
        data=spec.data,
        model=spec.model,
        pooling=spec.pooling,
        reuse=spec.reuse,
        resources=spec.resources,
        budget=spec.budget,
        enforce_cpu=spec.enforce_cpu,
    )


class EmbeddingExecutor(InferenceExecutor):
    """Loads the model as an embedding task does; what becomes of the vectors, subclasses say."""

    def model_key(self, spec: ModelSpec) -> ModelKey | None:
        """Returns the key of the embedding task's model."""
        return super().model_key(_embedding(spec))

    def load(self, spec: ModelSpec) -> Any:
        """Loads the model as an embedding task does."""
        return super().load(_embedding(spec))

    def answer(
        self, rows: Sequence[InputRow], spec: ModelSpec, model: Engine, caller: Caller
    ) -> Sequence[OutputRow]:
        """Refuses: nobody waits for such tasks row by row.

        Raises:
            InputError: Always.
        """
        raise InputError(f"a task of type {spec.task_type!r} answers no calls")


def _embedding(spec: ModelSpec) -> ModelSpec:
    return embedding_of(spec) if isinstance(spec, IndexSpec | RetrieveSpec) else spec


def vectors_name(spec: IndexSpec | RetrieveSpec, model: Engine) -> str:
    """Returns what makes the vectors of an index's chunks: the model, its state, the pooling.

    What stands before each chunk is named last: what stands before a query may be another text.
    """
    pooling = spec.pooling
    revision = loaded_revision(model)
    parts = [short_name(spec.model.source) + f"@{revision}" * bool(revision)]
    if pooling.pooling_type is not None:
        parts.append(f"pooling_type={pooling.pooling_type}")
    if not pooling.normalize:
        parts.append("normalize=false")
    if pooling.dimensions is not None:
        parts.append(f"dimensions={pooling.dimensions}")
    name = " ".join(parts)
    if isinstance(spec, IndexSpec) and pooling.instruction:
        name += f"{_INSTRUCTION}{pooling.instruction!r}"
    return name


def check_model(index: str, built_by: str, asked_by: str) -> None:
    """Checks that queries are embedded by what has embedded the chunks.

    Raises:
        InputError: If it is something else.
    """
    if built_by and built_by.partition(_INSTRUCTION)[0] != asked_by:
        raise InputError(
            f"the vectors of the index {index!r} were made by {built_by}, and queries would be by "
            f"{asked_by}: embed them in the same way"
        )
