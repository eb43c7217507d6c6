"""`mloc api`, `mloc dispatcher`, `mloc worker`, `mloc webserver`: services in the foreground."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING

from mloc_dagster.cli.terminal import OK
from mloc_dagster.errors import InputError, TransientError
from mloc_dagster.fleet import (
    RUNS_QUEUE,
    detect_hardware,
    gpu_groups,
    group_environment,
    require_fleet,
    run_worker_group,
)
from mloc_dagster.settings import settings

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send


_log = logging.getLogger(__name__)

_GRACE_S = 10


def serve(host: str | None, port: int | None) -> int:
    """Serves until SIGTERM or Ctrl-C; returns the exit code.

    Args:
        host: Address to listen on; by default the setting's.
        port: Port to listen on; by default the setting's.

    Raises:
        InputError: If nothing is up in `MLOC_HOME`, and no database is configured.
    """
    if settings().postgres_url is None:
        from mloc_dagster.cli.local_api import use_stack

        use_stack()
    import uvicorn

    from mloc_dagster.api import TimeoutProtocol, Tokens, access_log_on_stdout, create_app
    from mloc_dagster.ledger import Ledger

    host = host or settings().api_host
    if not Tokens.of(settings()).asked_for and not _is_loopback(host):
        _log.warning(
            "the API listens on %s and asks nobody for a token: set MLOC_API_TOKEN_FILE", host
        )
    with closing(Ledger.open()) as ledger, access_log_on_stdout():
        uvicorn.run(
            create_app(ledger, host=host),
            host=host,
            port=port or settings().api_port,
            http=TimeoutProtocol,
            loop="uvloop",
            ws="none",
            lifespan="on",
            log_level="warning",
            access_log=False,  # ours has the token's name and the task
            server_header=False,
            limit_concurrency=settings().api_max_connections,
            backlog=1024,
            timeout_keep_alive=15,
            timeout_graceful_shutdown=_GRACE_S,
        )
    return OK


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def dispatch() -> int:
    """Dispatches until SIGTERM or Ctrl-C; returns the exit code.

    Raises:
        InputError: If nothing is up in `MLOC_HOME`, and no database is configured.
    """
    if settings().postgres_url is None or settings().redis_url is None:
        from mloc_dagster.cli.local_api import use_stack

        use_stack()
    from mloc_dagster.dispatch import run

    run()
    return OK


@dataclass(frozen=True, slots=True)
class WorkerOptions:
    """What the command line says.

    Attributes:
        queues: Where to take work from; empty for what the hardware names.
        gpus: Which GPUs; None for those that the process sees.
        gpus_per_worker: GPUs that one worker owns.
        tags: Free labels, `key=value`.
    """

    queues: Sequence[str]
    gpus: str | None
    gpus_per_worker: int
    tags: Sequence[str]


def work(options: WorkerOptions) -> int:
    """Works until it is told to stop; returns the exit code.

    Raises:
        InputError: If there is no Redis or it refuses the user, no such GPU, or shards and runs
            are mixed.
    """
    with suppress(TransientError):  # a worker waits for a Redis that is away
        require_fleet()
    queues = tuple(options.queues)
    if RUNS_QUEUE in queues and len(queues) > 1:
        raise InputError(
            "runs and shards live in separate processes: start one worker with --queues runs,"
            " and another one for the rest"
        )
    tags = dict(_pair(each) for each in options.tags)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    logging.getLogger("alembic").setLevel(logging.WARNING)
    if options.gpus is not None:
        groups = gpu_groups(detect_hardware(), options.gpus, options.gpus_per_worker)
        if len(groups) > 1:
            return run_worker_group(groups, queues, tags)
        os.environ.update(group_environment(groups[0]))  # before anything starts CUDA
    from mloc_dagster.fleet import run_worker_process

    run_worker_process(queues, tags)
    return 0


def _pair(text: str) -> tuple[str, str]:
    key, separator, value = text.partition("=")
    if not separator or not key:
        raise InputError(f"a tag is written key=value, not {text!r}")
    return key, value


_POLL_MS = 2000
"""How often the UI asks for news of assets; Dagster's own default."""


def serve_webserver(host: str, port: int, workspace: Path) -> int:
    """Serves until SIGTERM or Ctrl-C; returns the exit code.

    Args:
        host: Address to listen on.
        port: Port to listen on.
        workspace: What the UI shows.
    """
    import uvicorn

    from mloc_dagster.api import TimeoutProtocol
    from mloc_dagster.services import open_instance, open_webserver

    with open_instance() as instance, open_webserver(instance, workspace, _POLL_MS) as ui:
        uvicorn.run(
            guarded(ui, host),
            host=host,
            port=port,
            http=TimeoutProtocol,
            log_level="warning",
            access_log=False,
            server_header=False,
        )
    return OK


def guarded(ui: ASGIApp, host: str) -> ASGIApp:
    """Returns Dagster's UI behind the guards.

    Args:
        ui: Dagster's.
        host: Where it listens.
    """
    from mloc_dagster.api import OriginGuard

    return OriginGuard(ReadsByGet(ui), bound=host, hosts=settings().allowed_hosts)


class ReadsByGet:
    """Lets a GET only ask: Dagster's webserver would carry out what a link says.

    Args:
        app: What is behind.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles a connection."""
        from mloc_dagster.api import Refusal, problem_response

        if scope["type"] == "http" and scope["method"] == "GET" and not _only_asks(scope):
            detail = "a GET to /graphql may only hold queries: send mutations by POST"
            refusal = Refusal(405, "mutation-by-get", detail, headers={"Allow": "POST"})
            await problem_response(refusal, scope["path"])(scope, receive, send)
            return
        await self._app(scope, receive, send)


def _only_asks(scope: Scope) -> bool:
    from graphql import GraphQLError, OperationDefinitionNode, OperationType, parse
    from starlette.datastructures import QueryParams

    for text in QueryParams(scope["query_string"]).getlist("query"):
        try:
            document = parse(text)
        except GraphQLError:
            continue  # Dagster says what is wrong with it
        for each in document.definitions:
            if (
                isinstance(each, OperationDefinitionNode)
                and each.operation is not OperationType.QUERY
            ):
                return False
    return True
