"""Whether a component does its work, asked as its users would ask."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from mloc_dagster.services.advisory_locks import AdvisoryLock

_PATIENCE_S = 2


def redis_answers(url: str) -> bool:
    """Returns whether Redis answers a PING; not while it still reads its file."""
    import redis

    with redis.Redis.from_url(
        url, socket_timeout=_PATIENCE_S, socket_connect_timeout=_PATIENCE_S, retry=None
    ) as client:
        try:
            return bool(client.ping())
        except redis.RedisError:
            return False


def postgres_answers(url: str) -> bool:
    """Returns whether PostgreSQL answers a SELECT 1; not while it recovers."""
    import psycopg2

    try:
        connection = psycopg2.connect(url, connect_timeout=_PATIENCE_S)
    except psycopg2.Error:
        return False
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
            return cursor.fetchone() == (1,)
    except psycopg2.Error:
        return False
    finally:
        connection.close()


def webserver_answers(url: str) -> bool:
    """Returns whether Dagster's UI answers with HTTP 200."""
    import httpx

    try:
        # The environment's proxies are for other machines.
        with httpx.Client(trust_env=False, timeout=_PATIENCE_S) as client:
            return client.get(f"{url}/server_info").status_code == httpx.codes.OK
    except httpx.HTTPError:
        return False


def api_answers(url: str) -> bool:
    """Returns whether the API says that it serves."""
    import httpx

    try:
        with httpx.Client(trust_env=False, timeout=_PATIENCE_S) as client:
            return client.get(f"{url}/healthz").status_code == httpx.codes.OK
    except httpx.HTTPError:
        return False


def dispatcher_answers(url: str) -> bool:
    """Returns whether a dispatcher leads; it may be that of another machine."""
    import psycopg2

    try:
        connection = psycopg2.connect(url, connect_timeout=_PATIENCE_S)
    except psycopg2.Error:
        return False
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_try_advisory_lock_shared(%s)", (AdvisoryLock.LEAD,))
            return cursor.fetchone() == (False,)
    except psycopg2.Error:
        return False
    finally:
        connection.close()


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
    import psycopg2

    try:
        connection = psycopg2.connect(postgres_url, connect_timeout=_PATIENCE_S)
    except psycopg2.Error:
        return False
    try:
        with connection.cursor() as cursor:
            # Dagster keeps its times in UTC without saying so.
            cursor.execute(
                "SELECT count(*) FROM daemon_heartbeats WHERE timestamp > %s",
                (since.astimezone(UTC).replace(tzinfo=None),),
            )
            row = cursor.fetchone()
            return row is not None and row[0] > 0
    except psycopg2.Error:
        return False  # the table is not there yet, or the server is not
    finally:
        connection.close()
