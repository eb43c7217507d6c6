"""The API of one command: where no other one answers, it serves itself.

So commands have one way to tasks, and read those of `mloc run` without a stack. Nothing is listened
for but a socket in a folder of this user's own.
"""

from __future__ import annotations

import logging
import os
import tempfile
import threading
from collections.abc import Generator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from mloc_dagster.errors import InputError, MlocError
from mloc_dagster.redaction import MASK, redact_urls
from mloc_dagster.results import open_store, results_at
from mloc_dagster.settings import settings

if TYPE_CHECKING:
    import dagster as dg
    import uvicorn
    from starlette.types import ASGIApp

    from mloc_dagster.client import Client
    from mloc_dagster.fleet import FleetEngine
    from mloc_dagster.ledger import Ledger

_log = logging.getLogger(__name__)

_TAKEN_OVER = (
    "DAGSTER_HOME",
    "MLOC_RESULTS_URL",
    "MLOC_TEMPLATES_DIR",
    "MLOC_TEMPLATES_PATH",
)
_FOLLOW_EVERY_S = 0.5


def use_stack() -> None:
    """Makes this process see what the stack in `MLOC_HOME` was started with.

    Raises:
        InputError: If none is up.
    """
    if not _use_stack():
        from mloc_dagster.home import stack_layout

        raise InputError(
            f"nothing is up in {stack_layout().home}: start the system with `mloc up`, or set"
            " MLOC_REDIS_URL and MLOC_POSTGRES_URL"
        )


def _use_stack() -> bool:
    from mloc_dagster.home import stack_layout, supervisor_process
    from mloc_dagster.services import saved_plan

    layout = stack_layout()
    supervisor, plan = supervisor_process(layout), saved_plan(layout)
    if supervisor is None or plan is None:
        return False
    # Where results and templates are was decided when the stack was started, perhaps elsewhere.
    started_with = supervisor.environ()
    os.environ |= {name: started_with[name] for name in _TAKEN_OVER if name in started_with}
    os.environ |= {"MLOC_REDIS_URL": plan.redis_url, "MLOC_POSTGRES_URL": plan.postgres_url}
    settings.cache_clear()
    return True


@contextmanager
def local_api(task: str | None = None) -> Generator[Client]:
    """Serves the API to this process over the database and the results that it would use.

    Args:
        task: What is read; if it is not among those results, they are those of its run.

    Raises:
        InputError: If there is no database: nothing was ever run here.
    """
    if settings().redis_url is None and not _use_stack():
        _check_database()
    from mloc_dagster.api import FleetAccess, Tokens, create_app

    fleet = FleetAccess()
    instance = fleet.instance()  # starts the embedded database
    with closing(_opened_ledger()) as ledger, _following(ledger, instance, fleet.engine_if_any()):
        if task is not None and (place := _place_of(instance, task)) is not None:
            os.environ["MLOC_RESULTS_URL"] = place
            settings.cache_clear()
        app = create_app(ledger, fleet, host="localhost", tokens=Tokens(None, None))
        with _served(app) as client:
            yield client


def place_of(task: str) -> str | None:
    """Returns where the run of a task wrote, if it is not here and a run of this home's says so.

    Raises:
        InputError: If its address had credentials, which are kept nowhere.
    """
    from mloc_dagster.home import stack_layout
    from mloc_dagster.services import open_instance

    if settings().postgres_url is None and not stack_layout().postgres.exists():
        return None
    with open_instance() as instance:
        return _place_of(instance, task)


def _place_of(instance: dg.DagsterInstance, task: str) -> str | None:
    from mloc_dagster.tasks import results_of

    place, here = results_of(instance, task), open_store().url
    if place is None or place == redact_urls(here):
        return None
    if MASK in place:
        raise InputError(
            f"the results of {task} are at {place}, and credentials are kept nowhere: set"
            " MLOC_RESULTS_URL to the whole address"
        )
    return place


def _opened_ledger() -> Ledger:
    from sqlalchemy.exc import ProgrammingError

    from mloc_dagster.ledger import Ledger

    try:
        return Ledger.open()
    except ProgrammingError as error:  # the role of workers, which docs/security.md describes
        raise InputError(
            "this user of the database may not read which tasks there are: set MLOC_API_URL to the"
            " address of an API that may"
        ) from error


def _check_database() -> None:
    from mloc_dagster.home import stack_layout

    layout = stack_layout()
    if settings().postgres_url is None and not layout.postgres.exists():
        raise InputError(
            f"nothing was run in {layout.home}, and nothing is up: `mloc run TEMPLATE` runs a"
            " template here, `mloc up` starts the system; or set MLOC_API_URL"
        )


@contextmanager
def _following(
    ledger: Ledger, instance: dg.DagsterInstance, engine: FleetEngine | None
) -> Generator[None]:
    """Keeps the ledger up to date with Dagster's runs, unless a dispatcher does."""
    from mloc_dagster.dispatch import Following, OpenRuns
    from mloc_dagster.services import AdvisoryLock

    with ledger.listen() as notifications:
        if not notifications.lead(AdvisoryLock.LEAD):
            yield
            return
        following, runs = Following(ledger, instance), OpenRuns(ledger, instance, engine)
        closing_down, own = threading.Event(), open_store().url

        def look() -> None:
            with results_at(own):  # all other tasks are there, whatever one this command reads
                if following.look():
                    runs.read()
                runs.look()

        def look_on() -> None:
            while not closing_down.wait(_FOLLOW_EVERY_S):
                try:
                    look()
                except (MlocError, OSError) as error:
                    _log.warning("tasks may be shown as they were a moment ago: %s", error)

        look()
        thread = threading.Thread(target=look_on, name="mloc-following", daemon=True)
        thread.start()
        try:
            yield
        finally:
            closing_down.set()
            thread.join()


@contextmanager
def _served(app: ASGIApp) -> Generator[Client]:
    import httpx
    import uvicorn

    from mloc_dagster.client import Client

    with tempfile.TemporaryDirectory(prefix="mloc-") as folder:
        path = Path(folder) / "api"
        server = uvicorn.Server(
            uvicorn.Config(
                app,
                uds=str(path),
                loop="asyncio",
                ws="none",
                lifespan="on",
                log_config=None,
                access_log=False,
                timeout_graceful_shutdown=1,
            )
        )
        thread = threading.Thread(target=server.run, name="mloc-api", daemon=True)
        thread.start()
        try:
            _wait_for(server, thread)
            transport = httpx.HTTPTransport(uds=str(path))
            with Client("http://localhost", "", transport=transport) as client:
                yield client
        finally:
            server.should_exit = True
            thread.join()


def _wait_for(server: uvicorn.Server, thread: threading.Thread) -> None:
    while not server.started and thread.is_alive():
        thread.join(0.01)
    if not server.started:
        raise MlocError("the API of this command did not start")
