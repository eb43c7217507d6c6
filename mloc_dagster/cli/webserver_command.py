"""`mloc webserver`: Dagster's own UI, with the API's guard against other sites' pages before it.

Dagster's webserver asks neither for whom it works nor whence a request comes: any page could start
and delete runs through a browser on this machine, even with a link.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mloc_dagster.cli.exit_codes import OK
from mloc_dagster.settings import settings

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

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
    from dagster._core.workspace.context import WorkspaceProcessContext
    from dagster._core.workspace.load_target import WorkspaceFileTarget
    from dagster._utils.log import configure_loggers
    from dagster_webserver.app import create_app_from_workspace_process_context
    from dagster_webserver.version import __version__

    from mloc_dagster.api.connections import PatientProtocol
    from mloc_dagster.services.instance import open_instance

    configure_loggers(log_level="INFO")
    with (
        open_instance() as instance,
        WorkspaceProcessContext(
            instance, WorkspaceFileTarget(paths=[str(workspace)]), version=__version__
        ) as context,
    ):
        ui = create_app_from_workspace_process_context(context, live_data_poll_rate=_POLL_MS)
        uvicorn.run(
            guarded(ui, host),
            host=host,
            port=port,
            http=PatientProtocol,
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
    from mloc_dagster.api.origins import OriginGuard

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
        from mloc_dagster.api.problems import Refusal, problem_response

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
