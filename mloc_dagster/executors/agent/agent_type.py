"""The task type `agent`; what runs it imports far more than this."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from mloc_dagster.errors import MissingExtraError
from mloc_dagster.executors.agent.counts import COUNTS
from mloc_dagster.executors.agent.report import FILES, AgentReport
from mloc_dagster.schema import AgentResult, AgentSpec, Idle, TaskSpec, TaskType

if TYPE_CHECKING:
    from mloc_dagster.executors.agent.executor import AgentExecutor


def _executor() -> AgentExecutor:
    if find_spec("pydantic_ai") is None:
        raise MissingExtraError("an agent task", "agent")
    from mloc_dagster.executors.agent.executor import AgentExecutor

    return AgentExecutor()


def _check_indexes(spec: Any, others: Sequence[TaskSpec]) -> None:
    from mloc_dagster.executors.retrieval.preflight import check_searched

    check_searched(spec, others)


AGENT = TaskType(
    name="agent",
    spec=AgentSpec,
    executor=_executor,
    kinds=("AgentTask",),
    exclusive=(frozenset({"task", "data"}),),
    result=AgentResult,
    idle=(
        Idle("reuse", "an agent's answer depends on what its tools say at the time", (AgentSpec,)),
    ),
    report=AgentReport,
    check=_check_indexes,
    preset=("configName", "agents"),
    whole_keys=frozenset({"model"}),
    files=FILES,
    counts=COUNTS,
)
