"""Searching an index by its name, with the model that its `index` task left beside it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from mloc_dagster.errors import InputError
from mloc_dagster.executors.base import Caller
from mloc_dagster.executors.model_cache import ModelCache
from mloc_dagster.executors.retrieval.query_model import query_fields, query_reach
from mloc_dagster.executors.retrieval.search import RetrieveExecutor
from mloc_dagster.results import InputRow, Passage
from mloc_dagster.schema import WEIGHTS, Index, RagTool, Resources, RetrieveSpec, Search, spec_of

_MOST_MODELS = 2
"""That a process keeps for searches by name."""


def search_index(index: Index, search: Search, queries: Sequence[str]) -> list[list[Passage]]:
    """Returns for each query what is found in an index, the best first.

    Its model is loaded here, on the CPU, and stays loaded: a few queries are embedded there sooner
    than a large engine starts, and GPUs belong to workers.

    Raises:
        UnknownNameError: If there is no such index.
        InputError: If it has no such version, or as `query_fields`; or a query cannot be embedded.
        TransientError: If the index cannot be reached.
    """
    rows = [InputRow(place, each) for place, each in enumerate(queries)]
    data = {"type": "list", "items": list(queries)}
    spec = _on_cpu(spec_of({**query_fields(index, search), "data": data}))
    executor = RetrieveExecutor()
    lent: Any = executor
    with query_reach(index, search).applied(), _models().lease(lent, spec) as model:
        answered = executor.answer(rows, spec, model, Caller(lambda *_: None, lambda: False))
    failed = next((row.error for row in answered if row.error is not None), None)
    if failed is not None:
        raise InputError(failed)
    return [row.retrieved or [] for row in answered]


def search_passages(tool: RagTool, query: str) -> list[Passage]:
    """Returns what an agent's tool `rag` finds, in the newest version at this moment."""
    (found,) = search_index(tool.place, tool.search, [query])
    return found


def _on_cpu(spec: RetrieveSpec) -> RetrieveSpec:
    if spec.model.source.type not in WEIGHTS:
        return spec
    model = spec.model.model_copy(update={"engine": "transformers"})
    hardware = {"resources": Resources(), "enforce_cpu": True}
    return spec.model_copy(update={"model": model, **hardware})


@cache
def _models() -> ModelCache:
    return ModelCache(_MOST_MODELS)
