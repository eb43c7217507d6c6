"""Whether the API lives and can accept, and its figures."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

from fastapi import APIRouter
from fastapi.responses import Response

from mloc_dagster import __version__
from mloc_dagster.api.metrics import CONTENT_TYPE
from mloc_dagster.api.openapi import problems
from mloc_dagster.api.state import ApiState, State, reply
from mloc_dagster.client.models import Check, Health, Readiness

_log = logging.getLogger(__name__)

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
    """Looks at the ledger, without which nothing is accepted, and at Redis, without which it is."""
    checks = {
        "ledger": _check("the ledger", api.ledger.counts),
        "results": _check("the results store", lambda: api.store.task("-").exists("-")),
        "redis": _check("the fleet's Redis", api.fleet.engine),
    }
    ok = checks["ledger"].ok and checks["results"].ok
    return reply(Readiness(ok=ok, checks=checks), 200 if ok else 503)


def _check(what: str, look: Callable[[], object]) -> Check:
    try:
        look()
    except Exception as error:  # noqa: BLE001 (whatever it is, it is not at hand)
        _log.warning("%s is not at hand: %s", what, error)
        return Check(ok=False, detail=f"{what} does not answer ({type(error).__name__})")
    return Check(ok=True)


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
