"""The engines of indexes that come with mloc; what opens indexes imports far more than this."""

from __future__ import annotations

from mloc_dagster.schema import IndexEngineType

PGVECTOR = IndexEngineType(
    name="pgvector", label="pgvector", opener="mloc_dagster.index.pgvector:PgvectorOpener"
)
LANCEDB = IndexEngineType(
    name="lancedb", label="LanceDB", opener="mloc_dagster.index.lancedb:LancedbOpener"
)
QDRANT = IndexEngineType(
    name="qdrant", label="Qdrant", opener="mloc_dagster.index.qdrant:QdrantOpener", local=False
)
