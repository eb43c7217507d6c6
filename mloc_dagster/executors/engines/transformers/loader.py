"""Loading models into the transformers engine."""

from __future__ import annotations

from mloc_dagster.executors.engines.protocol import Engine, EngineLoader
from mloc_dagster.schema.task import EmbeddingSpec, ModelSpec


class TransformersLoader(EngineLoader):
    """Loads models for text or for vectors."""

    def load(self, spec: ModelSpec) -> Engine:
        """Loads the model of a task; see `model.load_model` for what may go wrong."""
        if isinstance(spec, EmbeddingSpec):
            from mloc_dagster.executors.engines.transformers.pooling import load_engine

            return load_engine(spec)
        from mloc_dagster.executors.engines.transformers import engine

        return engine.load_engine(spec)
