"""The task types of retrieval; what runs them imports far more than this."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from mloc_dagster.errors import MissingExtraError
from mloc_dagster.executors.retrieval import chunk_report, index_report
from mloc_dagster.executors.retrieval.report import (
    ABSTENTIONS,
    CITATION_ERRORS,
    UNJUDGED,
    UNREAD_VERDICTS,
    JudgeReport,
    RetrievalReport,
)
from mloc_dagster.schema import (
    Answering,
    AnswerSpec,
    ChunkResult,
    ChunkSpec,
    Idle,
    IndexResult,
    IndexSpec,
    JudgedRows,
    JudgeResult,
    JudgeSpec,
    LibraryText,
    RerankSpec,
    RetrieveResult,
    RetrieveSpec,
    TaskSpec,
    TaskType,
)

if TYPE_CHECKING:
    from mloc_dagster.executors.retrieval.answer import AnswerExecutor
    from mloc_dagster.executors.retrieval.chunks import ChunkExecutor
    from mloc_dagster.executors.retrieval.index import IndexExecutor
    from mloc_dagster.executors.retrieval.judge import JudgeExecutor
    from mloc_dagster.executors.retrieval.rerank import RerankExecutor
    from mloc_dagster.executors.retrieval.search import RetrieveExecutor
    from mloc_dagster.results import Folder


def _chunk_executor() -> ChunkExecutor:
    if find_spec("semantic_text_splitter") is None:
        raise MissingExtraError("a chunk task", "rag")
    from mloc_dagster.executors.retrieval.chunks import ChunkExecutor

    return ChunkExecutor()


def _index_executor() -> IndexExecutor:
    from mloc_dagster.executors.retrieval.index import IndexExecutor

    return IndexExecutor()


def _retrieve_executor() -> RetrieveExecutor:
    from mloc_dagster.executors.retrieval.search import RetrieveExecutor

    return RetrieveExecutor()


def _answer_executor() -> AnswerExecutor:
    from mloc_dagster.executors.retrieval.answer import AnswerExecutor

    return AnswerExecutor()


def _instructions(answering: Answering) -> tuple[str, ...]:
    return (
        "answer/base",
        f"answer/citations_{answering.citations}",
        "answer/abstain" if answering.abstain else "answer/no_abstain",
    )


def _rerank_executor() -> RerankExecutor:
    from mloc_dagster.executors.retrieval.rerank import RerankExecutor

    return RerankExecutor()


def _judge_executor() -> JudgeExecutor:
    from mloc_dagster.executors.retrieval.judge import JudgeExecutor

    return JudgeExecutor()


def _judge_prompt(judging: JudgedRows) -> tuple[str, ...]:
    return (judging.prompt,)


def _asks_its_own(spec: Any, _: str) -> bool:
    return spec.data.type == "upstream" and spec.data.text != "{prompt}"


def _check_index(spec: Any, others: Sequence[TaskSpec]) -> None:
    from mloc_dagster.executors.retrieval.preflight import check_index

    check_index(spec, others)


def _pin_version(spec: Any, folder: Folder, upstream: Mapping[str, Folder]) -> None:
    from mloc_dagster.executors.retrieval.preflight import pin_version

    pin_version(spec, folder, upstream)


def _inherit_version(spec: Any, folder: Folder, upstream: Mapping[str, Folder]) -> None:
    from mloc_dagster.executors.retrieval.preflight import inherit_version

    inherit_version(spec, folder, upstream)


def _publish(spec: Any, folder: Folder, plan: Any) -> Mapping[str, Any]:
    from mloc_dagster.executors.retrieval.publishing import conclude_index

    return conclude_index(spec, folder, plan)


def _version_searched(spec: Any, folder: Folder, plan: Any) -> Mapping[str, Any]:
    from mloc_dagster.executors.retrieval.pinned import read_pinned

    found = read_pinned(folder)
    return {} if found is None else {"index": found.state.model_dump(mode="json")}


CHUNK = TaskType(
    name="chunk",
    spec=ChunkSpec,
    executor=_chunk_executor,
    kinds=("ChunkTask",),
    result=ChunkResult,
    report=chunk_report.ChunkReport,
    counts=chunk_report.COUNTS,
)
INDEX = TaskType(
    name="index",
    spec=IndexSpec,
    executor=_index_executor,
    result=IndexResult,
    report=index_report.IndexReport,
    counts=index_report.COUNTS,
    check=_check_index,
    conclude=_publish,
)
RETRIEVE = TaskType(
    name="retrieve",
    spec=RetrieveSpec,
    executor=_retrieve_executor,
    result=RetrieveResult,
    report=RetrievalReport,
    check=_check_index,
    prepare=_pin_version,
    conclude=_version_searched,
)
RERANK = TaskType(
    name="rerank",
    spec=RerankSpec,
    executor=_rerank_executor,
    result=RetrieveResult,
    report=RetrievalReport,
    prepare=_inherit_version,
    conclude=_version_searched,
)
ANSWER = TaskType(
    name="answer",
    spec=AnswerSpec,
    executor=_answer_executor,
    result=RetrieveResult,
    report=RetrievalReport,
    counts=(ABSTENTIONS, CITATION_ERRORS),
    text=LibraryText("answer", "instructions", _instructions),
    prepare=_inherit_version,
    conclude=_version_searched,
)
JUDGE = TaskType(
    name="judge",
    spec=JudgeSpec,
    executor=_judge_executor,
    kinds=("JudgeTask",),
    result=JudgeResult,
    idle=(
        Idle(
            "data.text",
            "what is judged is the row as it was asked and answered",
            (JudgeSpec,),
            _asks_its_own,
        ),
    ),
    report=JudgeReport,
    counts=(UNJUDGED, UNREAD_VERDICTS),
    text=LibraryText("judge", "instructions", _judge_prompt, chosen_by="prompt"),
    prepare=_inherit_version,
    conclude=_version_searched,
)
