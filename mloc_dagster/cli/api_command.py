"""`mloc api`: the HTTP API in the foreground."""

from __future__ import annotations

import logging
from contextlib import closing
from ipaddress import ip_address

from mloc_dagster.cli.exit_codes import OK
from mloc_dagster.settings import settings

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
        from mloc_dagster.cli.fleet_context import use_stack

        use_stack()
    import uvicorn

    from mloc_dagster.api.access_log import access_log_on_stdout
    from mloc_dagster.api.app import create_app
    from mloc_dagster.api.auth import Tokens
    from mloc_dagster.api.connections import PatientProtocol
    from mloc_dagster.ledger.ledger import Ledger

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
            http=PatientProtocol,
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
