"""The task types of retrieval; what runs them imports far more than this."""

from __future__ import annotations

from mloc_dagster.schema import (
    AnswerSpec,
    ChunkSpec,
    IndexResult,
    IndexSpec,
    RerankSpec,
    RetrieveResult,
    RetrieveSpec,
    TaskType,
)

CHUNK = TaskType(name="chunk", spec=ChunkSpec, executor=None)
INDEX = TaskType(name="index", spec=IndexSpec, executor=None, result=IndexResult)
RETRIEVE = TaskType(name="retrieve", spec=RetrieveSpec, executor=None, result=RetrieveResult)
RERANK = TaskType(name="rerank", spec=RerankSpec, executor=None, result=RetrieveResult)
ANSWER = TaskType(name="answer", spec=AnswerSpec, executor=None, result=RetrieveResult)
