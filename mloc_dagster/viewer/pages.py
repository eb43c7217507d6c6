"""The viewer's pages: where they are, what a browser may do in them, and which need no token."""

from __future__ import annotations

import html
import re
import secrets
from importlib.resources import files
from urllib.parse import quote

from starlette.responses import HTMLResponse

VIEWER_PATH = "/ui"
"""Where the viewer is mounted, in the API as in `mloc view`: its pages name each other so."""

SESSION_COOKIE = "mloc_session"
"""Holds the token of who signed in, until the browser is closed. Sent to the viewer alone."""

STATIC = files("mloc_dagster.viewer") / "static"

_OPEN = (VIEWER_PATH, f"{VIEWER_PATH}/login")

_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


def is_open_page(path: str) -> bool:
    """Tells whether a path of the viewer tells nothing of any task: signing in, and its looks."""
    return path in _OPEN or path.startswith(f"{VIEWER_PATH}/static/")


def task_address(base: str, task_id: str) -> str:
    """Returns the address of a task's page.

    Args:
        base: The server's address.
        task_id: The task.
    """
    return f"{base.rstrip('/')}{VIEWER_PATH}/tasks/{quote(task_id, safe='')}"


def workflow_address(base: str, workflow_id: str) -> str:
    """Returns the address of the list of a workflow's tasks.

    Args:
        base: The server's address.
        workflow_id: What their ids begin with.
    """
    return f"{base.rstrip('/')}{VIEWER_PATH}/?find={quote(workflow_id, safe='')}"


def batch_address(base: str, batch_id: str) -> str:
    """Returns the address of the list of the small tasks that one run computes together.

    Args:
        base: The server's address.
        batch_id: The batch, which is the run.
    """
    return f"{base.rstrip('/')}{VIEWER_PATH}/?batch={quote(batch_id, safe='')}"


def login_address(path: str) -> str:
    """Returns where who is not signed in is sent, to come back to a page afterwards."""
    return f"{VIEWER_PATH}/login?next={quote(path, safe='')}"


_PART = re.compile(r"\{\{>(\w+)\}\}")
_VALUE = re.compile(r"\{\{(\w+)\}\}")


def _text(name: str) -> str:
    return (STATIC / name).read_text(encoding="utf-8")


def page(
    name: str, status: int = 200, *, docs: str = "", session: bool = False, **texts: str
) -> HTMLResponse:
    """Returns a page; texts are escaped.

    Args:
        name: Its file in `static/`.
        status: Of the response.
        docs: The address of the API's documentation; empty where there is no API.
        session: Whether there is somebody to sign out.
        texts: What stands in for `{{name}}`; `{{>name}}` is the file `name.part.html`.
    """
    nonce = secrets.token_urlsafe(16)
    values = {
        "nonce": nonce,
        "docs": docs,
        "session": "yes" if session else "",
        **texts,
    }
    text = _PART.sub(lambda found: _text(f"{found[1]}.part.html").rstrip("\n"), _text(name))
    shown = _VALUE.sub(lambda found: html.escape(values[found[1]]), text)
    # The table makes its own style sheets, which carry the nonce; scripts are files, all of them.
    policy = (
        f"default-src 'none'; script-src 'self'; style-src 'self' 'nonce-{nonce}'; "
        "img-src 'self' data:; connect-src 'self'; font-src 'self' data:; form-action 'self'; "
        "base-uri 'none'; frame-ancestors 'none'"
    )
    return HTMLResponse(shown, status, {**_HEADERS, "Content-Security-Policy": policy})
