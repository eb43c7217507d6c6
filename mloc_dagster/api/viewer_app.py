"""The viewer under `/ui/` of the API: the same pages as `mloc view`, behind the same tokens.

A browser sends no `Authorization` by itself: who signs in on the viewer's page gets the token as a
cookie, which scripts cannot read, other sites cannot have sent, and the routes of the API ignore.
"""

from __future__ import annotations

from collections.abc import Callable
from http.cookies import CookieError, SimpleCookie
from typing import TYPE_CHECKING

from fastapi import FastAPI
from starlette.datastructures import Headers
from starlette.responses import RedirectResponse, Response
from starlette.types import Scope

from mloc_dagster.api.openapi import DOCS
from mloc_dagster.results import open_store
from mloc_dagster.viewer import SESSION_COOKIE, VIEWER_PATH, create_viewer, login_address

if TYPE_CHECKING:
    from mloc_dagster.ledger import Ledger


def install_viewer(app: FastAPI, ledger: Ledger, opens: Callable[[str], bool] | None) -> None:
    """Mounts the viewer, and leads `/` to it.

    Args:
        app: The API.
        ledger: Knows how tasks are that have left no files yet.
        opens: Tells whether a token opens the API; None where nobody is asked for one.
    """

    def state_of(task_id: str) -> str | None:
        entry = ledger.task(task_id)
        return None if entry is None else entry.state.value

    viewer = create_viewer(open_store, opens=opens, state_of=state_of, docs=DOCS)

    @app.get("/", include_in_schema=False)
    async def root() -> RedirectResponse:
        return RedirectResponse(f"{VIEWER_PATH}/")

    app.mount(VIEWER_PATH, viewer, name="viewer")


def of_the_viewer(path: str) -> bool:
    """Tells whether a path belongs to the viewer."""
    return path == VIEWER_PATH or path.startswith(f"{VIEWER_PATH}/")


def session_token(scope: Scope) -> str | None:
    """Returns the token with which somebody signed in to the viewer; None for other paths."""
    if not of_the_viewer(scope["path"]):
        return None
    cookies: SimpleCookie = SimpleCookie()
    for header in Headers(scope=scope).getlist("cookie"):
        try:
            cookies.load(header)
        except CookieError:
            return None
    found = cookies.get(SESSION_COOKIE)
    return None if found is None else found.value


def to_login(scope: Scope) -> Response | None:
    """Returns where a browser goes that asks for a page without being signed in."""
    path = scope["path"]
    page = of_the_viewer(path) and not path.startswith(f"{VIEWER_PATH}/data/")
    if not page or scope["method"] not in ("GET", "HEAD"):
        return None
    query = scope.get("query_string", b"").decode("latin-1")
    return RedirectResponse(login_address(f"{path}?{query}" if query else path), 303)
