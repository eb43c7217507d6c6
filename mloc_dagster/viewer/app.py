"""The viewer as an ASGI application: pages, and the JSON that they are made of."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Annotated, Any

import msgspec
import numpy as np
from fastapi import Depends, FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.responses import RedirectResponse, Response, StreamingResponse
from starlette.staticfiles import StaticFiles

from mloc_dagster.errors import DamagedFileError, InputError, MlocError, UnknownNameError
from mloc_dagster.results import BUFFER_BYTES, RECORD_NAME, Folder, ResultStore, inside
from mloc_dagster.viewer.distributions import frequent_values, histograms
from mloc_dagster.viewer.pages import SESSION_COOKIE, STATIC, VIEWER_PATH, page
from mloc_dagster.viewer.row_detail import IMAGE, row_detail
from mloc_dagster.viewer.row_export import MEDIA_TYPES, ExportFormat, export_blocks
from mloc_dagster.viewer.row_source import RowSource
from mloc_dagster.viewer.selection import Question, Selections
from mloc_dagster.viewer.sources import Sources, idle_columns, notes
from mloc_dagster.viewer.task_view import (
    StateOf,
    batch_members,
    downloads,
    relevant_column,
    task_lines,
    view_of,
)

_MOST_ROWS = 1_000
"""Of a window; the table asks for a few hundred."""

_MOST_TASKS = 200
_IMAGE_TYPES = {"jpeg": "image/jpeg", "png": "image/png", "gif": "image/gif", "webp": "image/webp"}


@dataclass(frozen=True, slots=True)
class Viewer:
    """What the routes share.

    Attributes:
        store: Returns where results are.
        opens: Tells whether a token opens the API; None where nobody is asked for one.
        state_of: What a ledger says of a task.
        docs: The address of the API's documentation; empty where there is none.
    """

    store: Callable[[], ResultStore]
    opens: Callable[[str], bool] | None
    state_of: StateOf
    docs: str
    sources: Sources = field(default_factory=Sources)
    selections: Selections = field(default_factory=Selections)

    def folder(self, task_id: str) -> Folder:
        """Returns a task's folder.

        Raises:
            UnknownNameError: If there is no such task.
        """
        store = self.store()
        try:
            folder = store.task(task_id)
        except InputError:
            raise UnknownNameError("task", task_id[:200], ()) from None
        # A task that was accepted has a page before it has a folder.
        if not folder.list() and self.state_of(task_id) is None:
            raise UnknownNameError("task", task_id, store.task_ids())
        return folder

    def shown(self, name: str, **texts: str) -> Response:
        """Returns a page."""
        return page(name, 200, docs=self.docs, session=self.opens is not None, **texts)


def create_viewer(
    store: Callable[[], ResultStore],
    *,
    opens: Callable[[str], bool] | None = None,
    state_of: StateOf = lambda _: None,
    docs: str = "",
) -> FastAPI:
    """Returns the viewer, to be mounted at `VIEWER_PATH`.

    Args:
        store: Returns where results are.
        opens: Tells whether a token opens the API. Who has none is asked for it by a page; that a
            request has one is for the API to check.
        state_of: What a ledger says of a task.
        docs: The address of the API's documentation.
    """
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False)
    app.state.viewer = Viewer(store, opens, state_of, docs)
    _add_pages(app)
    _add_login(app)
    _add_tasks(app)
    _add_rows(app)
    _add_files(app)
    app.mount("/static", _Static(directory=str(STATIC)))
    for kind in (MlocError, HTTPException, RequestValidationError, Exception):
        app.add_exception_handler(kind, _refused)
    return app


class _Static(StaticFiles):
    """Files of the package; those of libraries have their version in their name."""

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        response = super().file_response(*args, **kwargs)
        versioned = re.search(r"/vendor/[\w.-]+\d\.min\.", str(args[0])) is not None
        age = "public, max-age=31536000, immutable" if versioned else "no-cache"
        response.headers["Cache-Control"] = age
        response.headers["X-Content-Type-Options"] = "nosniff"
        return response


def _viewer(request: Request) -> Viewer:
    return request.app.state.viewer


Shared = Annotated[Viewer, Depends(_viewer)]


def _refused(request: Request, error: Exception) -> Response:
    status, text = _status(error)
    path = request.url.path
    if request.method == "GET" and f"{VIEWER_PATH}/data/" not in path:
        viewer = _viewer(request)
        title = {404: "Not found", 409: "Damaged"}.get(status, "That did not work")
        return page("error.html", status, docs=viewer.docs, title=title, detail=text)
    return _json({"status": status, "detail": text}, status)


def _status(error: Exception) -> tuple[int, str]:
    match error:
        case HTTPException():
            return error.status_code, str(error.detail)
        case RequestValidationError():
            found = [f"{each['loc'][-1]}: {each['msg']}" for each in error.errors()]
            return 422, "; ".join(found)
        case UnknownNameError():
            return 404, str(error)
        case InputError():
            return 422, str(error)
        case DamagedFileError():
            return 409, str(error)
        case MlocError():
            return 409, str(error)
        case _:
            return 500, "this is a defect; the server's log says more"


def _json(content: object, status: int = 200) -> Response:
    body = msgspec.json.encode(content, enc_hook=str)
    headers = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
    return Response(body, status, headers, "application/json")


def _add_pages(app: FastAPI) -> None:
    @app.get("")
    def bare() -> Response:
        return RedirectResponse(f"{VIEWER_PATH}/")

    @app.get("/")
    def tasks(viewer: Shared) -> Response:
        return viewer.shown("tasks.html")

    @app.get("/tasks/{task_id}")
    def task(viewer: Shared, task_id: str) -> Response:
        return viewer.shown("task.html", task=viewer.folder(task_id).name)

    @app.get("/compare")
    def compare(viewer: Shared, a: str, b: str) -> Response:
        return viewer.shown("compare.html", a=viewer.folder(a).name, b=viewer.folder(b).name)


def _add_login(app: FastAPI) -> None:
    @app.get("/login")
    def login(viewer: Shared, next: str = "") -> Response:
        if viewer.opens is None:
            return RedirectResponse(f"{VIEWER_PATH}/")
        return page("login.html", 200, next=_own_path(next), problem="")

    @app.post("/login")
    async def sign_in(viewer: Shared, request: Request) -> Response:
        form = await request.form()
        token, next_page = str(form.get("token", "")).strip(), _own_path(str(form.get("next", "")))
        known = viewer.opens is None or await run_in_threadpool(viewer.opens, token)
        if not known:
            problem = "That token does not open this API."
            return page("login.html", 401, next=next_page, problem=problem)
        response = RedirectResponse(next_page, 303)
        response.set_cookie(
            SESSION_COOKIE,
            token,
            path=VIEWER_PATH,
            httponly=True,
            samesite="strict",
            secure=request.url.scheme == "https",
        )
        return response

    @app.post("/logout")
    def sign_out() -> Response:
        response = RedirectResponse(f"{VIEWER_PATH}/login", 303)
        response.delete_cookie(SESSION_COOKIE, path=VIEWER_PATH, httponly=True, samesite="strict")
        return response


def _own_path(path: str) -> str:
    """Returns a page of the viewer: never of another site, whatever somebody put into a link."""
    own = re.fullmatch(rf"{VIEWER_PATH}/(?!/)[^\\\x00-\x20]*", path)
    return path if own else f"{VIEWER_PATH}/"


def _add_tasks(app: FastAPI) -> None:
    @app.get("/data/tasks")
    def tasks(viewer: Shared, batch: str = "") -> Response:
        store = viewer.store()
        latest = islice(store.newest(RECORD_NAME), _MOST_TASKS)
        folders = batch_members(store, batch) if batch else latest
        return _json(task_lines(folders, viewer.state_of))

    @app.get("/data/tasks/{task_id}")
    def task(viewer: Shared, task_id: str) -> Response:
        return _json(view_of(viewer.folder(task_id), viewer.state_of))


@dataclass(frozen=True, slots=True)
class _Selected:
    """Rows that a request asks for."""

    source: RowSource
    positions: np.ndarray
    name: str
    folder: Folder | None


def _selected(
    viewer: Shared,
    task: str,
    beside: str = "",
    where: str = "",
    search: str = "",
    sort: str = "",
    descending: bool = False,
) -> _Selected:
    folder = viewer.folder(task)
    if beside:
        source: RowSource = viewer.sources.compared(folder, viewer.folder(beside))
    else:
        source = viewer.sources.rows(folder)
    positions = viewer.selections.positions(source, Question(where, search, sort, descending))
    name = f"{task}-{beside}" if beside else task
    return _Selected(source, positions, name, None if beside else folder)


Selected = Annotated[_Selected, Depends(_selected)]


def _add_rows(app: FastAPI) -> None:
    @app.get("/data/columns")
    def columns(chosen: Selected) -> Response:
        found = {
            "columns": chosen.source.columns,
            "rows": chosen.source.rows,
            "version": chosen.source.version,
            "idle": idle_columns(chosen.source),
            "notes": notes(chosen.source),
        }
        return _json(found)

    @app.get("/data/rows")
    def rows(
        chosen: Selected,
        column: Annotated[list[str], Query()],
        start: Annotated[int, Query(ge=0)] = 0,
        count: Annotated[int, Query(ge=0, le=_MOST_ROWS)] = 100,
    ) -> Response:
        wanted = [each for each in dict.fromkeys(["index", *column]) if chosen.source.has(each)]
        some = chosen.positions[start : start + count]
        return _json(
            {
                "rows": chosen.source.window(some, wanted),
                "selected": len(chosen.positions),
                "version": chosen.source.version,
            }
        )

    @app.get("/data/row")
    def row(chosen: Selected, index: int) -> Response:
        position = chosen.source.position_of(index)
        if position is None:
            raise UnknownNameError("row", str(index), ())
        relevant = "" if chosen.folder is None else relevant_column(chosen.folder)
        return _json(row_detail(chosen.source, position, chosen.folder, relevant))

    @app.get("/data/distributions")
    def distributions(chosen: Selected) -> Response:
        return _json(
            {
                "histograms": histograms(chosen.source, chosen.positions),
                "values": frequent_values(chosen.source, chosen.positions),
                "selected": len(chosen.positions),
            }
        )

    @app.get("/data/deltas")
    def deltas(viewer: Shared, task: str, beside: str) -> Response:
        compared = viewer.sources.compared(viewer.folder(task), viewer.folder(beside))
        only_a, only_b = compared.only_in()
        found = {
            "deltas": compared.deltas(),
            "rows": compared.rows,
            "only_a": only_a,
            "only_b": only_b,
            "scores": compared.scores,
        }
        return _json(found)

    @app.get("/data/export")
    def export(chosen: Selected, format: ExportFormat = "csv") -> Response:
        blocks = export_blocks(chosen.source, chosen.positions, format)
        return _attached(blocks, f"{chosen.name}-rows.{format}", MEDIA_TYPES[format])


def _add_files(app: FastAPI) -> None:
    @app.get("/data/tasks/{task_id}/files/{name:path}")
    def file(viewer: Shared, task_id: str, name: str) -> Response:
        folder = viewer.folder(task_id)
        if name not in downloads(folder) or not inside(folder, name):
            raise HTTPException(404, f"the manifest of {task_id} lists no file {name[:200]!a}")
        shown_name = name.rpartition("/")[2]
        return _attached(_blocks(folder, name), shown_name, "application/octet-stream")

    @app.get("/data/tasks/{task_id}/image/{name:path}")
    def image(viewer: Shared, task_id: str, name: str) -> Response:
        folder = viewer.folder(task_id)
        found = IMAGE.fullmatch(name)
        if found is None or not folder.exists(name) or not inside(folder, name):
            raise HTTPException(404, f"{task_id} keeps no image {name[:200]!a}")
        kind = _IMAGE_TYPES.get(found[1], "image/bmp")
        headers = {
            "Cache-Control": "private, max-age=86400, immutable",  # its name is its hash
            "Content-Security-Policy": "sandbox",
            "X-Content-Type-Options": "nosniff",
        }
        return Response(folder.read_bytes(name), headers=headers, media_type=kind)


def _blocks(folder: Folder, name: str) -> Iterator[bytes]:
    with folder.open(name) as file:
        while block := file.read(BUFFER_BYTES):
            yield block


def _attached(blocks: Iterator[bytes], name: str, media_type: str) -> Response:
    safe = re.sub(r"[^A-Za-z0-9._-]", "_", name)
    headers = {
        "Content-Disposition": f'attachment; filename="{safe}"',
        "Cache-Control": "no-store",
        "Content-Security-Policy": "sandbox",
        "X-Content-Type-Options": "nosniff",
    }
    return StreamingResponse(_in_thread(blocks), headers=headers, media_type=media_type)


async def _in_thread(blocks: Iterator[bytes]) -> AsyncGenerator[bytes]:
    while (block := await run_in_threadpool(next, blocks, None)) is not None:
        yield block
