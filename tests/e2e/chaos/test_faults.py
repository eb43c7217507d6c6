"""Full disks and databases, processes that stand still: nothing is lost, and work goes on."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from time import sleep
from typing import Any

import httpx
import psycopg2
import pytest
import redis

from tests.e2e.chaos.small_disk import SmallDisk, small_disk
from tests.e2e.stack import Stack, until

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

LEASE_S = 3
FAULT_S = 2 * LEASE_S
"""How long a fault lasts where nothing tells that it had its effect: leases lapse meanwhile."""

ROWS = 96
"""More than tasks have that share a run."""
FOLLOWERS = 200

ENDED = ("DONE", "DEAD", "CANCELLED")


class Api:
    """The API of a stack, as its users call it."""

    def __init__(self, stack: Stack) -> None:
        self.client = httpx.Client(
            base_url=f"http://127.0.0.1:{stack.api_port}", trust_env=False, timeout=30
        )

    def submit(self, **spec: Any) -> httpx.Response:
        """Posts a template of a task that takes a moment for each of its rows."""
        body = _template(**spec)
        return self.client.post("/api/v1/tasks", json=body)

    def accepted(self, **spec: Any) -> str:
        """Posts it until it is accepted; returns the task."""

        def posted() -> str | None:
            with suppress(httpx.TransportError):
                answer = self.submit(**spec)
                if answer.status_code == 202:
                    return answer.json()["tasks"][0]["task_id"]
                assert answer.status_code == 503, answer.text
            return None

        found = until(posted, "a task is accepted")
        assert found is not None
        return found

    def task(self, task_id: str) -> dict[str, Any]:
        """What the API says of a task."""
        answer = self.client.get(f"/api/v1/tasks/{task_id}")
        assert answer.status_code == 200, answer.text
        return answer.json()

    def ready(self) -> httpx.Response:
        """Whether it says that it can do its work."""
        return self.client.get("/healthz/ready")

    def until_ready(self) -> None:
        """Waits until it says so."""

        def ready() -> bool:
            with suppress(httpx.TransportError):
                return self.ready().status_code == 200
            return False

        until(ready, "the API is ready", 180)

    def until_not_ready(self, why: str) -> None:
        """Waits until it says that it cannot, and names what is the matter."""
        until(lambda: self.ready().status_code == 503 and why in self.ready().text, why)

    def end_of(self, task_id: str, timeout_s: float = 300) -> dict[str, Any]:
        """Waits until a task has ended; returns what is said of it then."""

        def ended() -> dict[str, Any] | None:
            with suppress(httpx.TransportError):
                answer = self.client.get(f"/api/v1/tasks/{task_id}")
                if answer.status_code == 200 and answer.json()["status"] in ENDED:
                    return answer.json()
            return None

        found = until(ended, f"{task_id} has ended", timeout_s)
        assert found is not None
        return found

    def check_done(self, *task_ids: str) -> None:
        """Waits for tasks; asserts that each has all of its rows, once, and as they should be."""
        for task_id in task_ids:
            known = self.end_of(task_id)
            assert (known["status"], known["error"]) == ("DONE", ""), known
            result = self.client.get(f"/api/v1/results/{task_id}").json()["result"]
            outputs = [each["output"] for each in result["items"]]
            assert outputs == [f"row {number}" for number in range(ROWS)]


def _template(delay_s: float = 0.0, shards: int = 2, **more: Any) -> dict[str, Any]:
    return {
        "apiVersion": "mloc/v1",
        "kind": "EchoTask",
        "metadata": {"name": "faults"},
        "spec": {
            "data": {"type": "list", "items": [f"row {number}" for number in range(ROWS)]},
            "parallel": {"enabled": True, "max_shards": shards},
            "echo": {"delay_s": delay_s},
            "retries": {"max": 1, "delay_s": 0},
            **more,
        },
    }


@pytest.fixture(scope="module")
def disks() -> Iterator[tuple[SmallDisk, SmallDisk]]:
    """One for the home of a stack, with its databases and logs, and one for its results."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mloc-")))
        folder.chmod(0o711)
        home = stack.enter_context(small_disk(folder / "home", "400m"))
        results = stack.enter_context(small_disk(folder / "results", "16m"))
        yield home, results


@pytest.fixture(scope="module")
def stack(disks: tuple[SmallDisk, SmallDisk]) -> Iterator[Stack]:
    home, results = disks
    environment = {
        "MLOC_RESULTS_URL": str(results.folder),
        "MLOC_LEASE_TTL_S": str(LEASE_S),
        "MLOC_FLUSH_INTERVAL_S": "0.2",
    }
    sizes = {"workers": 1, "run_workers": 1, "api": True}
    with Stack(home.folder, environment=environment, **sizes) as running:
        yield running


@pytest.fixture
def api(stack: Stack) -> Iterator[Api]:
    """The API of a stack that has recovered from whatever was before."""
    api = Api(stack)
    api.until_ready()
    with closing(api.client):
        yield api


# Disks


def test_a_full_results_store_is_waited_for(disks: tuple[SmallDisk, SmallDisk], api: Api) -> None:
    _, results = disks
    running = api.accepted(delay_s=0.06, retries={"max": 0})
    folder = results.folder / running / "shards"
    until(lambda: list(folder.glob("*/part-*")), "rows are written")
    results.fill()
    try:
        api.until_not_ready("No space left on device")
        waiting = api.accepted()
        stopped = api.end_of(running)
        assert stopped["status"] == "DEAD"
        assert f"No space left on device: '{results.folder / running}" in stopped["error"]
        assert api.client.get(f"/api/v1/results/{running}").status_code == 404
        assert api.task(waiting)["status"] not in ENDED
    finally:
        results.free()
    api.until_ready()
    api.check_done(waiting)
    answer = api.client.post(f"/api/v1/tasks/{running}/retry")
    assert answer.status_code == 202, answer.text
    until(lambda: api.task(running)["status"] != "DEAD", "it is tried again")
    api.check_done(running)


def test_a_results_store_that_may_only_be_read_is_waited_for(
    disks: tuple[SmallDisk, SmallDisk], api: Api
) -> None:
    _, results = disks
    done = api.accepted()
    api.check_done(done)
    results.make_writable(False)
    try:
        api.until_not_ready("Read-only file system")
        waiting = api.accepted()
        api.check_done(done)  # what is there can be read
        assert api.task(waiting)["status"] not in ENDED
    finally:
        results.make_writable(True)
    api.until_ready()
    api.check_done(waiting)


def test_a_full_disk_under_databases_and_logs_is_outlived(
    disks: tuple[SmallDisk, SmallDisk], stack: Stack, api: Api
) -> None:
    home, _ = disks
    supervisor = stack.layout.pid_file.read_text()
    kept = [api.accepted(delay_s=0.06)]
    try:
        # PostgreSQL has room in files of its own for some more.
        until(lambda: _is_full(home, api, kept), "a task is refused")
    finally:
        home.free()
    api.until_ready()
    for task_id in [*kept, api.accepted()]:
        known = api.end_of(task_id)
        assert (known["status"], known["rows"]) == ("DONE", ROWS), known
    assert stack.layout.pid_file.read_text() == supervisor


def _is_full(home: SmallDisk, api: Api, kept: list[str]) -> bool:
    """Fills a disk and has a large task accepted; returns whether it was refused instead."""
    home.fill()  # once more: logs are rotated, and PostgreSQL gives files back
    try:
        answer = api.submit(data=_much())
    except httpx.TransportError:
        return True
    if answer.status_code == 202:
        kept.append(answer.json()["tasks"][0]["task_id"])
        return False
    assert answer.status_code == 503, answer.text
    return True


def _much() -> dict[str, Any]:
    return {"type": "list", "items": [f"{number}" + "x" * 5_000 for number in range(ROWS)]}


# Databases


def test_a_redis_without_memory_is_waited_for(stack: Stack, api: Api) -> None:
    running = api.accepted(delay_s=0.06)
    until(lambda: api.task(running)["status"] == "RUNNING", "it runs")
    with redis.Redis.from_url(stack.redis_url) as owner:
        owner.config_set("maxmemory", "1")
        try:
            until(lambda: "'maxmemory'" in api.ready().json()["checks"]["redis"]["detail"], "seen")
            waiting = api.accepted()
            sleep(FAULT_S)
            assert api.task(waiting)["status"] not in ENDED
        finally:
            owner.config_set("maxmemory", "0")
    api.until_ready()
    api.check_done(running, waiting)


def test_a_database_without_connections_is_waited_for(stack: Stack, api: Api) -> None:
    running = api.accepted(delay_s=0.06)
    with _all_connections(stack.postgres_url):
        killed = stack.kill("worker-1")  # the one that takes its place finds no connection
        answer = api.submit()
        assert answer.status_code in (202, 503), answer.text
        sleep(FAULT_S)
    stack.wait_running("worker-1", not_pid=killed, timeout_s=180)
    waiting = [answer.json()["tasks"][0]["task_id"]] if answer.status_code == 202 else []
    api.until_ready()
    api.check_done(running, *waiting, api.accepted())


@contextmanager
def _all_connections(url: str) -> Iterator[None]:
    """Takes every connection that is left, those that are kept for superusers too."""
    with ExitStack() as taken:
        while True:
            try:
                taken.enter_context(closing(psycopg2.connect(url)))
            except psycopg2.OperationalError as error:
                assert "too many clients" in str(error)  # noqa: PT017 (what is caught is not all)
                break
        yield


# Processes that stand still


@pytest.mark.parametrize("name", ["api", "dispatcher", "worker-1", "runs-1"])
def test_a_process_that_stands_still_goes_on(stack: Stack, api: Api, name: str) -> None:
    running = api.accepted(delay_s=0.06)
    until(lambda: api.task(running)["status"] == "RUNNING", "it runs")
    tasks = [running]
    pid = stack.freeze(name)
    try:
        if name == "api":
            with pytest.raises(httpx.TimeoutException):
                api.client.get("/healthz", timeout=FAULT_S)
        else:
            tasks.append(api.accepted())
            sleep(FAULT_S)
    finally:
        os.kill(pid, signal.SIGCONT)
    api.check_done(*tasks, api.accepted())
    assert stack.pid(name) == pid


# Several at once


def test_two_who_retry_a_task_at_once_have_it_tried_once(stack: Stack, api: Api) -> None:
    broken = api.accepted(echo={"fail_rate": 1.0})
    ended = api.end_of(broken)
    # Each of the two shards was tried twice, which is known of a task that has ended, too.
    assert (ended["status"], ended["retries"]) == ("DEAD", 2)
    runs = api.task(broken)["runs"]
    pid = stack.freeze("dispatcher")  # else the new run may fail before the slower command starts
    try:
        with ThreadPoolExecutor() as pool:
            asked = [pool.submit(stack.mloc, "retry", broken) for _ in range(2)]
            answers = [each.result() for each in asked]
    finally:
        os.kill(pid, signal.SIGCONT)
    assert sorted(each.returncode for each in answers) in ([0, 0], [0, 2]), answers
    until(lambda: api.task(broken)["runs"] > runs, "it is tried again")
    assert api.end_of(broken)["status"] == "DEAD"
    assert api.task(broken)["runs"] == runs + 1


def test_what_the_fleet_runs_is_not_resumed_beside_it(stack: Stack, api: Api) -> None:
    running = api.accepted(delay_s=20)  # it outlasts both commands, however slow they are
    until(lambda: api.task(running)["status"] == "RUNNING", "it runs")
    for resumed in (["run", "--resume", running], ["run", "--resume", running, "--fresh"]):
        done = stack.mloc(*resumed)
        assert done.returncode == 2, done.stderr
        assert f"task {running} is running" in done.stderr
    assert api.client.post(f"/api/v1/tasks/{running}/cancel").status_code == 202
    assert api.end_of(running)["status"] == "CANCELLED"


def test_two_hundred_follow_the_logs_of_a_task(stack: Stack, api: Api) -> None:
    followed = api.accepted(delay_s=0.06)
    told = asyncio.run(_follow(str(api.client.base_url), followed))
    api.check_done(followed)
    assert len(told) == FOLLOWERS
    assert len({tuple(each) for each in told}) == 1
    assert len(told[0]) > 1
    assert stack.component("api").restarts == 0


async def _follow(url: str, task_id: str) -> list[list[str]]:
    """Returns what each follower was told until the end."""
    limits = httpx.Limits(max_connections=FOLLOWERS)
    async with httpx.AsyncClient(
        base_url=url, trust_env=False, timeout=120, limits=limits
    ) as client:

        async def one() -> list[str]:
            place = f"/api/v1/tasks/{task_id}/logs"
            told: list[str] = []
            async with client.stream(
                "GET", place, headers={"Accept": "text/event-stream"}
            ) as answer:
                assert answer.status_code == 200
                async for line in answer.aiter_lines():
                    if line.startswith("data:"):
                        told.append(line)
            assert json.loads(told[-1].removeprefix("data:"))["status"] == "DONE"
            return told

        return list(await asyncio.gather(*(one() for _ in range(FOLLOWERS))))
