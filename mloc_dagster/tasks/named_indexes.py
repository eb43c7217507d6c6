"""Indexes by their names: what there is, what is in them, searching them."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from pydantic import JsonValue

from mloc_dagster.errors import UnknownNameError
from mloc_dagster.executors import query_fields
from mloc_dagster.index import IndexInfo, index_info, index_names, list_indexes
from mloc_dagster.results import Passage
from mloc_dagster.schema import Index, RetrievedItem, Search
from mloc_dagster.wire import IndexSearchReply, IndexVersionView, IndexView


def index_views() -> tuple[IndexView, ...]:
    """Returns the indexes where mloc's engines keep them by default."""
    found = [index_info(each) for each in list_indexes()]
    return tuple(_view(each) for each in found if each is not None)


def index_view(index: Index) -> IndexView:
    """Returns what an index is.

    Raises:
        UnknownNameError: If there is no such index; names the nearest.
        MlocError: If it cannot be reached.
    """
    found = index_info(index)
    if found is None:
        known = index_names(index.engine) if index.url is None else ()
        raise UnknownNameError("index", index.name, known)
    return _view(found)


def search_template(index: Index, search: Search) -> dict[str, JsonValue]:
    """Returns a template with one task that searches an index.

    Raises:
        InputError: If nothing tells which model embeds its queries.
    """
    return {
        "apiVersion": "mloc/v1",
        "kind": "RetrievalTask",
        "metadata": {"name": "search"},
        "spec": {**query_fields(index, search), "data": {"type": "list", "items": ["-"]}},
    }


def pinned(search: Search, view: IndexView) -> Search:
    """Returns a search that says which version it means: the one it names, or the newest."""
    if search.version is not None or not view.versions:
        return search
    return search.model_copy(update={"version": view.versions[-1].number})


def search_reply(
    index: Index, search: Search, passages: Sequence[Passage] | None
) -> IndexSearchReply:
    """Returns what was found as it travels."""
    items = [RetrievedItem.model_validate(msgspec.to_builtins(each)) for each in passages or ()]
    return IndexSearchReply(
        name=index.name,
        engine=index.engine,
        version=search.version,
        count=len(items),
        passages=tuple(items),
    )


def _view(info: IndexInfo) -> IndexView:
    versions = [
        {
            "number": each.number,
            "chunks": each.chunks,
            "task_id": each.build.partition("@")[0],
            "published_at": each.published_at,
        }
        for each in info.versions
    ]
    return IndexView(
        name=info.name,
        engine=info.engine,
        metric=info.metric,  # type: ignore[arg-type]
        dimension=info.dimension,
        model=info.model,
        chunks=info.chunks,
        versions=tuple(IndexVersionView.model_validate(each) for each in versions),
    )
