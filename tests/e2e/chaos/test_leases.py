"""Workers that fall silent without being dead, and shards that kill whoever takes them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic
from urllib.parse import urlsplit

import psutil
import pytest

from mloc_dagster.events import open_redis
from mloc_dagster.settings import Settings
from tests.e2e.chaos.task import Task
from tests.e2e.chaos.tcp_proxy import TcpProxy
from tests.e2e.chaos.verdict import Rows, check
from tests.e2e.stack import ROOT, Stack, until

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

Measure = Callable[[str, float], None]

_FATAL_LOSSES = 3


def test_a_paused_worker_has_no_say_when_it_goes_on(
    stack: Stack, task: Task, expected: Rows
) -> None:
    task.wait_done(1)
    (lost,) = task.wait_held(f"{stack.plan.worker_prefix}-1")
    pid = stack.freeze("worker-1")
    try:
        task.wait_reclaimed(lost)
        task.wait_ended(lost.shard)
    finally:
        os.kill(pid, signal.SIGCONT)
    check(task, expected, moved=[lost])
    assert dict(task.logged("STEP_SUCCESS"))[lost.shard] != pid
    assert stack.pid("worker-1") == pid


def test_a_worker_that_is_cut_off_has_no_say_when_it_is_back(
    stack: Stack, expected: Rows, measured: Measure
) -> None:
    port = urlsplit(stack.redis_url).port
    assert port is not None
    with TcpProxy(port) as network, own_worker(stack, network, "cut-off") as process:
        until(lambda: status_of(stack, "cut-off") == "IDLE", "the worker is up")
        task = Task.launch(stack)
        (lost,) = task.wait_held("cut-off")
        network.cut()
        cut = monotonic()
        task.wait_reclaimed(lost)
        measured("network cut: the shard is claimed again", monotonic() - cut)
        task.wait_ended(lost.shard)
        network.mend()
        until(lambda: status_of(stack, "cut-off") == "IDLE", "the worker is back", 30)
        check(task, expected, moved=[lost])
        assert dict(task.logged("STEP_SUCCESS"))[lost.shard] != process.pid
        assert process.poll() is None


def test_a_shard_that_kills_three_workers_is_a_failed_attempt(
    stack: Stack, task: Task, expected: Rows
) -> None:
    task.wait_done(1)
    (lost,) = task.wait_held(f"{stack.plan.worker_prefix}-1")
    claim = lost
    for losses in range(1, _FATAL_LOSSES + 1):
        stack.kill(f"worker-{claim.worker.rpartition('-')[2]}")
        if losses < _FATAL_LOSSES:
            claim = task.wait_reclaimed(claim)
    check(task, expected, moved=[lost], retries=1)
    assert [shard for shard, _ in task.logged("STEP_UP_FOR_RETRY")] == [lost.shard]


def status_of(stack: Stack, worker_id: str) -> str:
    with open_redis(stack.redis_url) as client:
        return (client.hget(f"worker:{worker_id}", "status") or b"").decode()


@contextmanager
def own_worker(stack: Stack, network: TcpProxy, name: str) -> Iterator[subprocess.Popen[bytes]]:
    """A worker that reaches Redis over a network of the test's own."""
    address = urlsplit(stack.redis_url)
    url = address._replace(netloc=f":{address.password}@127.0.0.1:{network.port}").geturl()
    environment = {
        **stack.plan.environment(stack.environment, Settings()),
        "MLOC_REDIS_URL": url,
        "MLOC_RESULTS_URL": stack.environment["MLOC_RESULTS_URL"],
        "MLOC_WORKER_NAME": name,
    }
    with (stack.layout.logs / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "mloc_dagster.cli", "worker"],
            cwd=ROOT,
            env=environment,
            stdout=log,
            stderr=log,
        )
        try:
            yield process
        finally:
            psutil.Process(process.pid).kill()
            process.wait()
