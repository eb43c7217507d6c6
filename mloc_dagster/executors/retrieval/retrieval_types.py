"""The task types of retrieval; what runs them imports far more than this."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mloc_dagster.executors.retrieval.report import ABSTENTIONS, CITATION_ERRORS, RetrievalReport
from mloc_dagster.schema import (
    Answering,
    AnswerSpec,
    ChunkSpec,
    IndexResult,
    IndexSpec,
    LibraryText,
    RerankSpec,
    RetrieveResult,
    RetrieveSpec,
    TaskType,
)

if TYPE_CHECKING:
    from mloc_dagster.executors.retrieval.answer import AnswerExecutor


def _answers() -> AnswerExecutor:
    from mloc_dagster.executors.retrieval.answer import AnswerExecutor

    return AnswerExecutor()


def _instructions(answering: Answering) -> tuple[str, ...]:
    return (
        "answer/base",
        f"answer/citations_{answering.citations}",
        "answer/abstain" if answering.abstain else "answer/no_abstain",
    )


CHUNK = TaskType(name="chunk", spec=ChunkSpec, executor=None)
INDEX = TaskType(name="index", spec=IndexSpec, executor=None, result=IndexResult)
RETRIEVE = TaskType(name="retrieve", spec=RetrieveSpec, executor=None, result=RetrieveResult)
RERANK = TaskType(name="rerank", spec=RerankSpec, executor=None, result=RetrieveResult)
ANSWER = TaskType(
    name="answer",
    spec=AnswerSpec,
    executor=_answers,
    result=RetrieveResult,
    report=RetrievalReport,
    counts=(ABSTENTIONS, CITATION_ERRORS),
    text=LibraryText("answer", "instructions", _instructions),
)
