"""`mloc dispatcher`: from accepted tasks to runs, in the foreground."""

from __future__ import annotations

from mloc_dagster.cli.exit_codes import OK
from mloc_dagster.settings import settings


def dispatch() -> int:
    """Dispatches until SIGTERM or Ctrl-C; returns the exit code.

    Raises:
        InputError: If nothing is up in `MLOC_HOME`, and no database is configured.
    """
    if settings().postgres_url is None or settings().redis_url is None:
        from mloc_dagster.cli.fleet_context import use_stack

        use_stack()
    from mloc_dagster.dispatch.process import run

    run()
    return OK
