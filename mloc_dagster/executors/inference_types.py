"""The task types that send rows through a model; what computes them imports far more than this."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mloc_dagster.schema import EmbeddingSpec, InferenceSpec, TaskType

if TYPE_CHECKING:
    from mloc_dagster.executors.inference import InferenceExecutor


def _executor() -> InferenceExecutor:
    from mloc_dagster.executors.inference import InferenceExecutor

    return InferenceExecutor()


INFERENCE = TaskType(
    name="inference", spec=InferenceSpec, executor=_executor, kinds=("InferenceTask",)
)
EMBEDDING = TaskType(
    name="embedding", spec=EmbeddingSpec, executor=_executor, kinds=("EmbeddingTask",)
)
