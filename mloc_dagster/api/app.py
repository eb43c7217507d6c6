"""The API as an ASGI application."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

from mloc_dagster import __version__
from mloc_dagster.api import (
    admin_routes,
    health_routes,
    index_routes,
    logs,
    problems,
    result_routes,
    task_routes,
)
from mloc_dagster.api.acceptance import Acceptance
from mloc_dagster.api.auth import BearerAuth, OriginGuard, Tokens
from mloc_dagster.api.compiled_bodies import CompiledBodies
from mloc_dagster.api.fleet_access import FleetAccess
from mloc_dagster.api.limits import Limits, RequestGuard
from mloc_dagster.api.metrics import AccessLog, Metrics, Observed
from mloc_dagster.api.openai import batches, chat, files, models
from mloc_dagster.api.openai.calls import CallRouter
from mloc_dagster.api.openapi import describe, install_docs
from mloc_dagster.api.state import ApiState
from mloc_dagster.api.viewer_app import install_viewer
from mloc_dagster.ledger import Ledger
from mloc_dagster.settings import settings

_ABOUT = """\
LLM tasks from YAML templates: submit, watch, collect.

What is answered with 202 is on disk and will run. Failure is RFC 9457 problem details, with the
same `file:line` texts as `mloc validate` prints.
"""


def create_app(
    ledger: Ledger,
    fleet: FleetAccess | None = None,
    host: str | None = None,
    tokens: Tokens | None = None,
) -> FastAPI:
    """Returns the API over a ledger; its limits are the settings' at this moment.

    Args:
        ledger: What is accepted goes there; the caller closes it.
        fleet: Runs and workers; by default those of the settings, opened when first asked for.
        host: Where it listens; by default the setting's.
        tokens: What opens it; by default the settings'.
    """
    limits, metrics = Limits.of(settings()), Metrics()
    tokens = tokens or Tokens.of(settings())
    fleet = fleet or FleetAccess()
    bodies = CompiledBodies(limits)
    state = ApiState(
        ledger=ledger,
        fleet=fleet,
        limits=limits,
        metrics=metrics,
        acceptance=Acceptance(ledger, bodies, metrics),
        calls=CallRouter(fleet, bodies, settings().api_max_calls),
        max_streams=settings().api_max_streams,
    )

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncGenerator[None]:
        await state.acceptance.start()
        try:
            yield
        finally:
            await state.acceptance.stop()
            state.fleet.close()

    app = FastAPI(
        title="mloc",
        version=__version__,
        description=_ABOUT,
        lifespan=lifespan,
        redirect_slashes=False,
        docs_url=None,
        redoc_url=None,
        separate_input_output_schemas=False,
    )
    app.state.api = state
    routes = (task_routes, logs, result_routes, index_routes, files, batches, chat, models)
    for each in (*routes, admin_routes, health_routes):
        app.include_router(each.router)
    install_docs(app)
    opens = (
        (lambda token: tokens.caller(f"Bearer {token}") is not None) if tokens.asked_for else None
    )
    install_viewer(app, ledger, opens)
    problems.install(app)
    describe(app, token=tokens.asked_for)
    # The last one added is the first to see a request.
    app.add_middleware(RequestGuard, limits=limits)
    app.add_middleware(BearerAuth, tokens=tokens)
    origins = settings().api_allowed_origins
    if origins:
        # A browser asks before it sends what these pages want, and without a token.
        app.add_middleware(
            CORSMiddleware, allow_origins=origins, allow_methods=["*"], allow_headers=["*"]
        )
    app.add_middleware(
        OriginGuard,
        bound=host or settings().api_host,
        hosts=settings().allowed_hosts,
        origins=origins,
        token=tokens.asked_for,
    )
    app.add_middleware(Observed, metrics=metrics)
    app.add_middleware(AccessLog)
    return app
