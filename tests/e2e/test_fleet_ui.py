"""The fleet from Dagster's UI: a launch outlives a worker, a termination keeps what is done."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from signal import SIGKILL
from typing import TYPE_CHECKING, cast

import pytest

from mloc_dagster.fleet import RedisFleetEngine, TicketState, connect, members_key
from mloc_dagster.results import OutputRow, open_store, read_rows
from tests.e2e.browser import CHROMIUM, Browser
from tests.e2e.stack import Stack, until

if TYPE_CHECKING:
    from playwright.sync_api import Playwright

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.slow,
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on PATH"),
]

SLOW = """
apiVersion: mloc/v1
kind: EchoTask
metadata: {{name: {name}}}
spec:
  taskType: echo
  parallel: {{max_shards: {shards}}}
  echo: {{delay_s: 0.15}}
  data: {{type: list, items: {items}}}
"""

ROWS = 80
ENDLESS_ROWS = 8_000
"""Of a task that is still at work whenever somebody stops it."""


def slow(name: str, rows: int, shards: int) -> str:
    """Returns a template whose shards take a second and a half each."""
    return SLOW.format(name=name, shards=shards, items=[f"row {each}" for each in range(rows)])


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("ui")
    library = folder / "library"
    library.mkdir()
    (library / "slow.yaml").write_text(slow("slow", ROWS, 8))
    (library / "endless.yaml").write_text(slow("endless", ENDLESS_ROWS, 256))
    environment = {"MLOC_TEMPLATES_DIR": str(library), "MLOC_LEASE_TTL_S": "2"}
    with Stack(folder / "home", workers=2, run_workers=1, environment=environment) as stack:
        yield stack


def test_a_worker_killed_in_mid_shard_costs_a_launch_from_the_ui_nothing(stack: Stack) -> None:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = launched(playwright, stack, "slow")
        page, engine = browser.page, RedisFleetEngine(connect(stack.redis_url))
        pid, run_id = until(lambda: busy_worker(engine), "a worker is in mid-shard")
        os.kill(pid, SIGKILL)
        page.goto(f"{stack.webserver_url}/runs/{run_id}")
        browser.shown(page.get_by_text("Success", exact=True).first)
        page.goto(f"{stack.webserver_url}/runs/{run_id}?logs=another")
        browser.shown(page.get_by_text("goes to another worker").first)
        browser.close()
    assert [row.output for row in rows_of(stack, run_id)] == [f"row {i}" for i in range(ROWS)]


def test_a_task_terminated_in_the_ui_stops_and_keeps_its_finished_rows(stack: Stack) -> None:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = launched(playwright, stack, "endless")
        page, engine = browser.page, RedisFleetEngine(connect(stack.redis_url))
        _, run_id = until(lambda: busy_worker(engine), "a worker is in mid-shard")
        page.goto(f"{stack.webserver_url}/runs/{run_id}")
        browser.click(page.get_by_role("button", name="Terminate").first)
        browser.click(page.get_by_role("dialog").get_by_role("button", name="Terminate"))
        browser.shown(page.get_by_text("Canceled", exact=True).first)
        browser.close()
    until(lambda: busy_worker(engine) is None, "no worker works on it any more")
    assert 0 < len(rows_of(stack, run_id)) < ENDLESS_ROWS
    shown = stack.mloc("show", run_id, "--json")
    assert [task["state"] for task in json.loads(shown.stdout)["tasks"]] == ["CANCELLED"]


def launched(playwright: Playwright, stack: Stack, job: str) -> Browser:
    """Launches a job by clicking; returns the browser."""
    browser = Browser(playwright)
    location = "locations/__repository__@mloc_dagster.definitions"
    browser.page.goto(f"{stack.webserver_url}/{location}/jobs/{job}")
    browser.click(browser.page.get_by_role("button", name="Materialize").first)
    browser.shown(browser.page.get_by_text("Launched run"))
    return browser


def rows_of(stack: Stack, run_id: str) -> list[OutputRow]:
    """The rows that a task has finished, in order."""
    return list(read_rows(open_store(stack.environment["MLOC_RESULTS_URL"]).task(run_id)))


def busy_worker(engine: RedisFleetEngine) -> tuple[int, str] | None:
    """Returns a worker in mid-shard whose run has finished another shard: its pid and the run."""
    for worker in engine.workers():
        for run_id in {each.partition(":")[0] for each in worker.running}:
            if "cpu" not in worker.queues:
                continue
            ids = cast("set[str]", engine.client.smembers(members_key(run_id)))
            tickets = engine.status(ids).values()
            # What a worker says of itself is as old as its last heartbeat; a ticket is not.
            mine = {each.state for each in tickets if each.worker_id == worker.worker_id}
            if TicketState.RUNNING in mine and TicketState.DONE in {each.state for each in tickets}:
                return worker.pid, run_id
    return None
