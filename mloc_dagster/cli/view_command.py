"""`mloc view`: results in a browser, served from here to this machine alone."""

from __future__ import annotations

import socket
import webbrowser
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING

import typer

from mloc_dagster.cli.local_api import place_of
from mloc_dagster.cli.terminal import OK
from mloc_dagster.errors import InputError, UnknownNameError
from mloc_dagster.results import ResultStore, open_store
from mloc_dagster.viewer import VIEWER_PATH, create_viewer, task_address, workflow_address

if TYPE_CHECKING:
    import uvicorn
    from starlette.types import ASGIApp

_HOST = "127.0.0.1"


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewOptions:
    """The command line of `mloc view`; see its help."""

    task: str | None = None
    results: str | None = None
    port: int | None = None
    browser: bool = True


def view(options: ViewOptions) -> int:
    """Serves the viewer until Ctrl-C; prints its address first; returns the exit code.

    Raises:
        InputError: If there is no such task, or the port is taken.
    """
    store, name = _meant(options)
    single = name is not None and _is_task(store, name)
    listener = _listener(options.port)
    address = f"http://{_HOST}:{listener.getsockname()[1]}"
    if name is None:
        page = f"{address}{VIEWER_PATH}/"
    else:
        page = task_address(address, name) if single else workflow_address(address, name)
    server = _server(local_viewer(store))
    typer.echo(f"{page}  (Ctrl-C ends it)")
    if options.browser:
        Thread(target=webbrowser.open, args=(page,), daemon=True).start()
    with suppress(KeyboardInterrupt):  # which is how it is meant to end
        server.run(sockets=[listener])
    return OK


def local_viewer(store: ResultStore) -> ASGIApp:
    """Returns what `mloc view` serves: no token, but for pages of this very server only."""
    from fastapi import FastAPI
    from starlette.responses import RedirectResponse

    from mloc_dagster.api import OriginGuard

    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)

    @app.get("/")
    def root() -> RedirectResponse:
        return RedirectResponse(f"{VIEWER_PATH}/")

    app.mount(VIEWER_PATH, create_viewer(lambda: store))
    app.add_middleware(OriginGuard, bound=_HOST)
    return app


def _meant(options: ViewOptions) -> tuple[ResultStore, str | None]:
    """Returns the store, and the task or workflow in it, that the command line means.

    A task is named by its id, or by its folder, as `mloc run` prints it last.
    """
    named = options.task
    if named is not None and "/" in named and "://" not in named and options.results is None:
        folder = Path(named)
        store, name = open_store(str(folder.absolute().parent)), folder.name
    else:
        store, name = open_store(options.results), named
    if name is not None and not _is_known(store, name):
        place = place_of(name) if options.results is None else None
        if place is not None and _is_known(open_store(place), name):
            return open_store(place), name
        raise UnknownNameError(f"task on {store.url}", name, list(store.task_ids()))
    return store, name


def _is_known(store: ResultStore, name: str) -> bool:
    return _is_task(store, name) or any(each.startswith(f"{name}-") for each in store.task_ids())


def _is_task(store: ResultStore, name: str) -> bool:
    return bool(store.task(name).list())


def _listener(port: int | None) -> socket.socket:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((_HOST, port or 0))
        listener.listen(128)  # a browser that comes before the server is ready waits
    except OSError as error:
        listener.close()
        raise InputError(
            f"port {port} of {_HOST} cannot be used ({error.strerror}): give another --port, or"
            " none for a free one"
        ) from error
    return listener


def _server(app: ASGIApp) -> uvicorn.Server:
    import uvicorn

    config = uvicorn.Config(
        app,
        ws="none",
        lifespan="off",
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=1,
    )
    return uvicorn.Server(config)
