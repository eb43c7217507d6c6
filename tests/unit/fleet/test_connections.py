"""What is closed leaves no connection behind."""

from __future__ import annotations

from mloc_dagster.fleet import Claim, Leases
from mloc_dagster.fleet.redis.engine import RedisFleetEngine
from mloc_dagster.fleet.redis.records import connect
from tests.fleet_threads import until


def no_stall(claim: Claim) -> None:
    raise AssertionError(claim.ticket_id)


def test_closed_claims_wait_on_no_connection(redis_url: str) -> None:
    with connect(redis_url) as client:
        others = {each["id"] for each in client.client_list()}
        claims = RedisFleetEngine(client).claims(Leases(30, 600, no_stall))
        assert claims.wait(["cpu"], "w", 0.05) is False
        (waiting,) = (each["id"] for each in client.client_list() if each["id"] not in others)
        claims.close()
        until(
            lambda: waiting not in {each["id"] for each in client.client_list()},
            "the connection is closed",
        )
