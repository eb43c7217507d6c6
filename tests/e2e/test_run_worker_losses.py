"""A run that takes its run workers down with it is failed, and not handed on for ever."""

from __future__ import annotations

from pathlib import Path

import dagster as dg
import pytest

from mloc_dagster.fleet.claims import Claims
from mloc_dagster.fleet.hardware import Hardware
from mloc_dagster.fleet.jobs import LIBRARY
from mloc_dagster.fleet.records import ticket_key
from mloc_dagster.fleet.redis_client import connect
from mloc_dagster.fleet.redis_engine import RedisFleetEngine
from mloc_dagster.fleet.run_worker import RunWorker
from mloc_dagster.fleet.tickets import run_ticket, run_ticket_id

pytestmark = pytest.mark.e2e

ECHO = """
apiVersion: mloc/v1
kind: EchoTask
metadata: {name: crashes}
spec: {taskType: echo, data: {type: list, items: [one]}}
"""


def test_a_run_is_failed_after_ten_lost_run_workers(
    instance: dg.DagsterInstance,
    redis_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from dagster._core.definitions.reconstruct import ReconstructableRepository

    (tmp_path / "crashes.yaml").write_text(ECHO)
    monkeypatch.setenv("MLOC_TEMPLATES_DIR", str(tmp_path))
    monkeypatch.setenv("MLOC_REDIS_URL", redis_url)
    job = ReconstructableRepository(LIBRARY).get_reconstructable_job("crashes")
    run = instance.create_run_for_job(job.get_definition(), job_code_origin=job.get_python_origin())
    engine = RedisFleetEngine(connect(redis_url), redis_url)
    engine.submit(run_ticket(run))
    engine.client.hset(ticket_key(run_ticket_id(run.run_id)), "losses", 10)
    claims = Claims(engine.client, lease_ttl_s=10, stall_timeout_s=60, on_stall=lambda claim: None)
    claim = claims.take(["runs"], "run-worker", Hardware(), [])
    assert claim is not None
    RunWorker(engine, instance).perform(claim)
    claims.close()
    ended = instance.get_run_by_id(run.run_id)
    assert ended is not None
    assert ended.status is dg.DagsterRunStatus.FAILURE
    (failure,) = instance.all_logs(run.run_id, of_type=dg.DagsterEventType.RUN_FAILURE)
    assert "10 run workers were lost" in failure.user_message + failure.message
