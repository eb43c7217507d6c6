"""What the issue's reader does: launch from the UI, kill a worker in mid-shard, watch it finish."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from signal import SIGKILL
from typing import cast

import pytest
import redis

from mloc_dagster.fleet.redis_client import connect
from mloc_dagster.fleet.registry import WorkerRegistry
from mloc_dagster.results.shard_files import read_rows
from mloc_dagster.results.store import open_store
from tests.e2e.stack import Stack, until

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.slow,
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on PATH"),
]

ROWS = 80
SLOW = f"""
apiVersion: mloc/v1
kind: EchoTask
metadata: {{name: slow}}
spec:
  taskType: echo
  parallel: {{max_shards: 8}}
  echo: {{delay_s: 0.15}}
  data: {{type: list, items: {[f"row {index}" for index in range(ROWS)]}}}
"""


def test_a_worker_killed_in_mid_shard_costs_a_launch_from_the_ui_nothing(tmp_path: Path) -> None:
    from playwright.sync_api import expect, sync_playwright

    library = tmp_path / "library"
    library.mkdir()
    (library / "slow.yaml").write_text(SLOW)
    environment = {"MLOC_TEMPLATES_DIR": str(library), "MLOC_LEASE_TTL_S": "2"}
    with (
        Stack(tmp_path / "home", workers=2, run_workers=1, environment=environment) as stack,
        sync_playwright() as playwright,
    ):
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM,
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
        )
        page = browser.new_page(viewport={"width": 1500, "height": 1000})
        location = "locations/__repository__@mloc_dagster.definitions"
        page.goto(f"{stack.webserver_url}/{location}/jobs/slow")
        page.get_by_role("button", name="Materialize all").first.click()
        page.get_by_text("Launched run").wait_for(timeout=120_000)

        client = connect(stack.redis_url)
        busy = until(lambda: busy_worker(client), "a worker is in mid-shard")
        os.kill(busy[0], SIGKILL)
        run_id = busy[1]

        page.goto(f"{stack.webserver_url}/runs/{run_id}")
        expect(page.get_by_text("Success", exact=True).first).to_be_visible(timeout=180_000)
        page.goto(f"{stack.webserver_url}/runs/{run_id}?logs=another")
        expect(page.get_by_text("goes to another worker").first).to_be_visible(timeout=30_000)
        browser.close()
        rows = list(read_rows(open_store(stack.environment["MLOC_RESULTS_URL"]).task(run_id)))
    assert [row.output for row in rows] == [f"row {index}" for index in range(ROWS)]


def busy_worker(client: redis.Redis) -> tuple[int, str] | None:
    """Returns a worker that has finished a shard and works on the next: its pid and its run."""
    finished = cast("int", client.get("fence") or 0)
    for worker in WorkerRegistry(client).live():
        if int(finished) > 4 and "cpu" in worker.queues and worker.running:
            return worker.pid, worker.running[0].partition(":")[0]
    return None
