"""Indexes: listed, shown, searched, dropped."""

from __future__ import annotations

from contextlib import aclosing
from typing import Annotated

from anyio import to_thread
from fastapi import APIRouter, Body, Depends, Path, Query
from fastapi.responses import Response

from mloc_dagster.api.openai.calls import Asked
from mloc_dagster.api.openapi import problems
from mloc_dagster.api.parameters import no_other_parameters
from mloc_dagster.api.problems import Refusal
from mloc_dagster.api.state import ApiState, State, reply
from mloc_dagster.executors import InputRow
from mloc_dagster.fleet import RowsPiece
from mloc_dagster.index import drop_index, find_index
from mloc_dagster.results import SERVER_FAULT, OutputRow
from mloc_dagster.schema import Index, Search
from mloc_dagster.tasks import index_view, index_views, pinned, search_reply, search_template
from mloc_dagster.wire import IndexPage, IndexReply, IndexSearchReply, IndexSearchRequest

router = APIRouter(prefix="/api/v1/indexes", tags=["indexes"])

_NAME = r"^[A-Za-z0-9_-][A-Za-z0-9._-]{0,199}$"
_Name = Annotated[str, Path(pattern=_NAME, description="Of an index.", examples=["handbook"])]
_Engine = Annotated[
    str | None,
    Query(
        max_length=100,
        pattern=r"^[^\x00-\x1f\x7f]+$",
        description="Whose index; needed where two engines have one of this name.",
    ),
]


@router.get(
    "",
    response_model=IndexPage,
    responses=problems(409, 422),
    dependencies=[Depends(no_other_parameters())],
    summary="List indexes",
)
def list_all(api: State) -> Response:
    """Returns the indexes where mloc's engines keep them by default."""
    found = index_views()
    return reply(IndexPage(count=len(found), indexes=found))


@router.get(
    "/{name}",
    response_model=IndexReply,
    responses=problems(404, 409, 422),
    dependencies=[Depends(no_other_parameters("engine"))],
    summary="One index",
)
def show(api: State, name: _Name, engine: _Engine = None) -> Response:
    """Returns an index with its versions, and which tasks published them."""
    return reply(IndexReply(index=index_view(find_index(name, engine))))


@router.post(
    "/{name}/search",
    response_model=IndexSearchReply,
    responses=problems(400, 404, 408, 409, 413, 422, 429),
    summary="Search an index",
)
async def search(
    api: State, name: _Name, wanted: Annotated[IndexSearchRequest, Body()]
) -> Response:
    """Returns the passages that fit a query best; a worker embeds it, and keeps the model warm."""
    given = wanted.model_dump(exclude={"query", "engine"})
    index, search = await to_thread.run_sync(_chosen, name, wanted.engine, given)
    asked = await to_thread.run_sync(
        lambda: api.calls.asked(search_template(index, search), index.name)
    )
    row = await _answered(api, asked, wanted.query)
    if row.error is not None:
        at_server = row.fault == SERVER_FAULT
        kind = "engine-failed" if at_server else "invalid-request"
        raise Refusal(500 if at_server else 400, kind, row.error)
    return reply(search_reply(index, search, row.retrieved))


@router.delete(
    "/{name}",
    response_model=IndexReply,
    responses=problems(404, 409, 422),
    dependencies=[Depends(no_other_parameters("engine"))],
    summary="Drop an index",
)
def drop(api: State, name: _Name, engine: _Engine = None) -> Response:
    """Removes an index with all its versions; returns what it was."""
    index = find_index(name, engine)
    found = index_view(index)
    drop_index(index)
    return reply(IndexReply(index=found))


def _chosen(name: str, engine: str | None, given: dict[str, object]) -> tuple[Index, Search]:
    index = find_index(name, engine)
    return index, pinned(Search.model_validate(given), index_view(index))


async def _answered(api: ApiState, asked: Asked, query: str) -> OutputRow:
    async with aclosing(api.calls.answer(asked, [InputRow(0, query)], stream=False)) as pieces:
        async for piece in pieces:
            if isinstance(piece, RowsPiece):
                return piece.rows[0]
    raise RuntimeError("an answer without an end")
