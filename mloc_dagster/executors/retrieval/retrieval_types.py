"""The task types of retrieval; what runs them imports far more than this."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

from mloc_dagster.errors import MissingExtraError
from mloc_dagster.executors.retrieval.chunk_report import COUNTS, ChunkReport
from mloc_dagster.schema import (
    AnswerSpec,
    ChunkResult,
    ChunkSpec,
    IndexResult,
    IndexSpec,
    RerankSpec,
    RetrieveResult,
    RetrieveSpec,
    TaskType,
)

if TYPE_CHECKING:
    from mloc_dagster.executors.retrieval.chunks import ChunkExecutor


def _chunks() -> ChunkExecutor:
    if find_spec("semantic_text_splitter") is None:
        raise MissingExtraError("a chunk task", "rag")
    from mloc_dagster.executors.retrieval.chunks import ChunkExecutor

    return ChunkExecutor()


CHUNK = TaskType(
    name="chunk",
    spec=ChunkSpec,
    executor=_chunks,
    kinds=("ChunkTask",),
    result=ChunkResult,
    report=ChunkReport,
    counts=COUNTS,
)
INDEX = TaskType(name="index", spec=IndexSpec, executor=None, result=IndexResult)
RETRIEVE = TaskType(name="retrieve", spec=RetrieveSpec, executor=None, result=RetrieveResult)
RERANK = TaskType(name="rerank", spec=RerankSpec, executor=None, result=RetrieveResult)
ANSWER = TaskType(name="answer", spec=AnswerSpec, executor=None, result=RetrieveResult)
