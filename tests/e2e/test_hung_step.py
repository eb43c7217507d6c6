"""A step that hangs: its process gives itself up, and another worker gets the ticket."""

from __future__ import annotations

import subprocess
import sys
import threading
from datetime import UTC, datetime

import pytest

from mloc_dagster.fleet import (
    Claim,
    RedisFleetEngine,
    StepTicket,
    TicketState,
    Worker,
    WorkerInfo,
    connect,
)
from tests.e2e.conftest import ROOT
from tests.e2e.stack import until

pytestmark = pytest.mark.e2e

TICKET = StepTicket(ticket_id="run:hangs:1", run_id="run", queue="cpu")

HANGS_FOREVER = """
import logging, sys, threading
from datetime import UTC, datetime
from mloc_dagster.fleet import WorkerInfo, open_engine
from mloc_dagster.fleet.worker.process import Worker

logging.basicConfig(level=logging.INFO)
now = datetime.now(UTC)
info = WorkerInfo(
    worker_id="hangs", host="here", pid=1, queues=("cpu",), started_at=now, last_seen=now
)
forever = threading.Event()
Worker(open_engine(), info, lambda claim: forever.wait(), slots=1).start()
forever.wait()
"""


def test_a_hung_step_costs_its_worker_and_goes_to_another_one(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in {
        "MLOC_REDIS_URL": redis_url,
        "MLOC_LEASE_TTL_S": "1",
        "MLOC_STALL_TIMEOUT_S": "1",
    }.items():
        monkeypatch.setenv(name, text)
    engine = RedisFleetEngine(connect(redis_url))
    engine.submit(TICKET)
    hung = subprocess.run(
        [sys.executable, "-c", HANGS_FOREVER],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert hung.returncode == 75
    assert "no sign of life" in hung.stderr

    until(lambda: state(engine) is TicketState.LOST, "the hung worker's lease lapses")
    now = datetime.now(UTC)
    info = WorkerInfo(
        worker_id="helps", host="here", pid=2, queues=("cpu",), started_at=now, last_seen=now
    )
    finished = threading.Event()

    def work(claim: Claim) -> None:
        assert claim.finish("done")
        finished.set()

    worker = Worker(engine, info, work, slots=1)
    worker.start()
    try:
        engine.submit(TICKET)
        assert finished.wait(30)
    finally:
        worker.close()
    assert state(engine) is TicketState.DONE
    assert engine.messages("run") == ["done"]


def state(engine: RedisFleetEngine) -> TicketState:
    return engine.status([TICKET.ticket_id])[TICKET.ticket_id].state
