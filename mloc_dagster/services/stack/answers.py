"""Whether a component does its work, asked as its users would ask."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mloc_dagster.errors import InputError, TransientError
from mloc_dagster.services.advisory_locks import AdvisoryLock

_PATIENCE_S = 2

_REFUSALS = (
    "password authentication failed",
    "no password supplied",
    "does not exist",
    "not permitted to log in",
    "no pg_hba.conf entry",
    "permission denied",
)
"""What PostgreSQL says of a user or a database that it refuses. Other errors pass: it starts up, or
has too many clients."""


def check_redis(url: str) -> None:
    """Returns if Redis lets this user in; see `events.stream.check_redis`."""
    from mloc_dagster.events import check_redis as let_in

    let_in(url)


def redis_answers(url: str) -> bool:
    """Returns whether Redis answers a PING; not while it still reads its file."""
    try:
        check_redis(url)
    except (InputError, TransientError):
        return False
    return True


def postgres_answers(url: str) -> bool:
    """Returns whether PostgreSQL answers a SELECT 1; not while it recovers."""
    return _first_row(url, "SELECT 1") == (1,)


def check_postgres(url: str) -> None:
    """Returns if PostgreSQL lets this user into this database.

    Args:
        url: With or without SQLAlchemy's name of the driver.

    Raises:
        InputError: If it refuses the user, the password or the database.
        TransientError: If it does not answer.
    """
    import psycopg2

    try:
        psycopg2.connect(url.replace("+psycopg2", "", 1), connect_timeout=_PATIENCE_S).close()
    except psycopg2.Error as error:
        lines = [line.strip() for line in str(error).splitlines()]
        refusal = next((line for line in lines if any(each in line for each in _REFUSALS)), None)
        if refusal is not None:
            raise InputError(
                f"PostgreSQL refuses its URL, correct the user, password or database: {refusal}"
            ) from error
        raise TransientError(f"PostgreSQL does not answer: {error}") from error


def tables_answer(url: str) -> bool:
    """Returns whether Dagster's tables are there: those that serve make them, workers may not."""
    # The ones that are made last.
    return _first_row(url, "SELECT to_regclass('job_ticks') IS NOT NULL") == (True,)


def webserver_answers(url: str) -> bool:
    """Returns whether Dagster's UI answers with HTTP 200."""
    return _is_ok(f"{url}/server_info")


def api_answers(url: str) -> bool:
    """Returns whether the API says that it serves."""
    return _is_ok(f"{url}/healthz")


def dispatcher_answers(url: str) -> bool:
    """Returns whether a dispatcher leads; it may be that of another machine."""
    free = _first_row(url, "SELECT pg_try_advisory_lock_shared(%s)", AdvisoryLock.LEAD)
    return free == (False,)


def code_answers(socket: Path) -> bool:
    """Returns whether the code server says that it serves."""
    import grpc
    from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
    from grpc_health.v1.health_pb2_grpc import HealthStub

    with grpc.insecure_channel(f"unix:{socket}") as channel:
        try:
            answer = HealthStub(channel).Check(  # pyright: ignore[reportAttributeAccessIssue]
                HealthCheckRequest(service="DagsterApi"), timeout=_PATIENCE_S
            )
        except grpc.RpcError:
            return False
        return answer.status == HealthCheckResponse.SERVING


def daemon_answers(postgres_url: str, since: datetime) -> bool:
    """Returns whether Dagster's daemon has sent a heartbeat to its database since a moment."""
    query = "SELECT count(*) FROM daemon_heartbeats WHERE timestamp > %s"
    # Dagster keeps its times in UTC without saying so.
    row = _first_row(postgres_url, query, since.astimezone(UTC).replace(tzinfo=None))
    return row is not None and row[0] > 0


def _is_ok(url: str) -> bool:
    import httpx

    try:
        # The environment's proxies are for other machines. This one is asked without TLS, and
        # reading the certificates would take longer than all the rest.
        with httpx.Client(trust_env=False, verify=False, timeout=_PATIENCE_S) as client:  # noqa: S501
            return client.get(url).status_code == httpx.codes.OK
    except httpx.HTTPError:
        return False


def _first_row(url: str, query: str, *values: object) -> tuple[Any, ...] | None:
    """Returns what a database answers; None while it, or the table, is not there."""
    import psycopg2

    try:
        connection = psycopg2.connect(url, connect_timeout=_PATIENCE_S)
    except psycopg2.Error:
        return None
    try:
        with connection.cursor() as cursor:
            cursor.execute(query, values)
            return cursor.fetchone()
    except psycopg2.Error:
        return None
    finally:
        connection.close()
