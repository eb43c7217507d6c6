"""Whether the API lives and can accept, and its figures."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping

from fastapi import APIRouter
from fastapi.responses import Response

from mloc_dagster import __version__
from mloc_dagster.api.metrics import CONTENT_TYPE
from mloc_dagster.api.openapi import problems
from mloc_dagster.api.state import ApiState, State, reply
from mloc_dagster.errors import FleetUnavailableError
from mloc_dagster.wire import Check, Health, Readiness

_log = logging.getLogger(__name__)

READY_FOLDER = ".ready"
"""In the results: holds one small file of each API, written to see whether there is room."""

router = APIRouter(tags=["operation"])


@router.get("/healthz", response_model=Health, summary="Does the process answer?")
async def live() -> Response:
    """Answers without looking at anything."""
    return reply(Health(version=__version__))


@router.get(
    "/healthz/ready",
    response_model=Readiness,
    responses={503: {"model": Readiness, "description": "It cannot accept now."}},
    summary="Can it accept?",
)
def ready(api: State) -> Response:
    """Looks at the ledger and the results store, without which nothing is accepted, and at Redis.

    The store and Redis are written to: either may be full, or read-only.
    """
    checks = {
        "ledger": _check("the ledger", api.ledger.counts),
        "results": _check("the results store", lambda: _write(api)),
        "redis": _check("the fleet's Redis", api.fleet.check_writable),
    }
    ok = checks["ledger"].ok and checks["results"].ok
    return reply(Readiness(ok=ok, checks=checks), 200 if ok else 503)


def _write(api: ApiState) -> None:
    # More than a disk keeps beside a file's name, and no need to wait for it.
    folder = api.store.unsettled().folder(READY_FOLDER)
    folder.write_bytes(f"api-{os.getpid()}", b"\0" * 4_096)


def _check(what: str, look: Callable[[], object]) -> Check:
    try:
        look()
    except Exception as error:  # noqa: BLE001 (whatever it is, it is not at hand)
        _log.warning("%s is not at hand: %s", what, error)
        return Check(ok=False, detail=f"{what} {_why(error)}")
    return Check(ok=True)


def _why(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"cannot be written: {error.strerror}"
    if isinstance(error, FleetUnavailableError) and error.reply:
        return f"takes nothing: {error.reply}"
    return f"does not answer ({type(error).__name__})"


@router.get(
    "/metrics",
    response_class=Response,
    responses={
        200: {"content": {"text/plain": {"schema": {"type": "string"}}}},
        **problems(),
    },
    summary="Figures for Prometheus",
)
def metrics(api: State) -> Response:
    """Returns requests, latencies, tasks by state, queues."""
    return Response(api.metrics.render(api.ledger.counts(), _queues(api)), media_type=CONTENT_TYPE)


def _queues(api: ApiState) -> Mapping[str, int]:
    try:
        return api.fleet.queue_depths()
    except Exception as error:  # noqa: BLE001 (the other figures are none of Redis's)
        _log.warning("the queues are not counted: %s", error)
        return {}
