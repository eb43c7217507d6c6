"""How fast a task of a million rows opens in the viewer, and how smoothly it scrolls.

    python benchmarks/viewer.py [--rows 1000000] [--rounds 5]

Runs a scored echo task of so many rows, serves it by `mloc view` and opens it in Chromium. A round
starts the server, opens the page in a browser that knows nothing of it, and waits for the first
rows; then it scrolls, sorts, filters and searches, measuring the time between frames, and how
long sorting, filtering and searching take. `benchmarks/results/viewer.json` keeps what it measured.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
from record import record

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

TEMPLATE = """
apiVersion: mloc/v1
kind: EchoTask
metadata: {{name: viewed}}
spec:
  parallel: {{max_shards: 4}}
  data: {{type: dataset, url: {data}, column: question}}
  evaluation: {{reference: answer, metrics: [numeric]}}
"""

_WAIT_MS = 120_000
_FIRST_ROW = "[role=row][row-index='{}'] [col-id='output']"

# Scrolls by a page in each of 240 frames; returns the milliseconds between frames.
_SCROLL = """
async () => {
  const view = document.querySelector(".ag-body-viewport, .ag-grid-scrolling-container")
    ?? [...document.querySelectorAll("#grid *")].find((each) => each.scrollHeight > 50000);
  const times = [];
  let before = performance.now();
  for (let frame = 0; frame < 240; frame += 1) {
    view.scrollTop += view.clientHeight / 2;
    await new Promise(requestAnimationFrame);
    const now = performance.now();
    times.push(now - before);
    before = now;
  }
  return times;
}
"""


def make_rows(path: Path, rows: int) -> None:
    """Writes questions with answers, one in 101 of which is not what an echo says."""
    with path.open("w") as file:
        for index in range(rows):
            said = index + (index % 101 == 7)
            question = (
                f"Row {index}: Ann packs pens into boxes, and counts them twice. Pens: {said}"
            )
            file.write(json.dumps({"question": question, "answer": f"#### {index}"}) + "\n")


def run_task(folder: Path, rows: int) -> str:
    """Runs the task; returns its folder."""
    make_rows(folder / "rows.jsonl", rows)
    template = folder / "viewed.yaml"
    template.write_text(TEMPLATE.format(data=folder / "rows.jsonl"))
    command = [sys.executable, "-m", "mloc_dagster.cli", "run", "--quiet", str(template)]
    environment = {
        **os.environ,
        "MLOC_HOME": str(folder / "home"),
        "MLOC_RESULTS_URL": str(folder / "results"),
    }
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout.split()[-1]


@contextmanager
def viewer(task: str) -> Iterator[tuple[str, psutil.Process]]:
    """Serves a task; yields its address and the server."""
    command = [sys.executable, "-m", "mloc_dagster.cli", "view", "--no-browser", task]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            address = re.match(r"\S+", process.stdout.readline())[0]
            yield address, psutil.Process(process.pid)
        finally:
            process.send_signal(signal.SIGINT)


def cpu_seconds() -> float:
    """Returns the CPU time of server and browser, which other work on the machine leaves alone."""
    total = 0.0
    for each in psutil.Process().children(recursive=True):
        try:
            times = each.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system
    return total


def seconds_until(page: Page, act: str, wanted: str) -> float:
    """Returns how long it takes from a script until the table answers a question anew."""
    began = time.monotonic()
    with page.expect_response(lambda answer: "/data/rows?" in answer.url, timeout=_WAIT_MS):
        page.evaluate(act)
    page.locator(wanted).first.wait_for(timeout=_WAIT_MS)
    return time.monotonic() - began


def one_round(browser: Browser, address: str) -> dict[str, float]:
    """Opens the task in a new browser window, and does with it what people do."""
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    page = context.new_page()
    began, busy_s = time.monotonic(), cpu_seconds()
    page.goto(address)
    page.locator(_FIRST_ROW.format(0)).get_by_text("Row 0").wait_for(timeout=_WAIT_MS)
    figures = {"open_s": time.monotonic() - began, "open_cpu_s": cpu_seconds() - busy_s}
    frames = page.evaluate(_SCROLL)
    figures["frame_ms_median"] = statistics.median(frames)
    figures["frame_ms_p95"] = statistics.quantiles(frames, n=20)[-1]
    figures["frame_ms_max"] = max(frames)
    buttons = "[...document.querySelectorAll('#chips button')]"
    click = buttons + ".find((each) => each.textContent === '{}').click()"
    first = _FIRST_ROW.format(0)
    figures["sort_s"] = seconds_until(page, click.format("numeric: worst first"), first)
    figures["filter_s"] = seconds_until(page, click.format("numeric < 1"), first)
    page.evaluate("document.getElementById('where').value = ''")
    search = (
        "document.getElementById('search').value = 'row 999';"
        "document.getElementById('question').requestSubmit()"
    )
    figures["search_s"] = seconds_until(page, search, first)
    context.close()
    return figures


def measure(task: str, rounds: int) -> dict[str, object]:
    """Measures a task that has run; the first round finds a server that has read nothing."""
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    found: list[dict[str, float]] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium, args=["--no-sandbox", "--disable-gpu"]
        )
        peak = 0
        for _ in range(rounds):
            began = time.monotonic()
            with viewer(task) as (address, server):
                start_s = time.monotonic() - began
                found.append({"start_s": start_s, **one_round(browser, address)})
                peak = max(peak, server.memory_info().rss)
        browser.close()
    medians = {name: statistics.median(each[name] for each in found) for name in found[0]}
    worst = {name: max(each[name] for each in found) for name in found[0]}
    return {"median": medians, "worst": worst, "rounds": found, "server_mib": peak / 2**20}


def main() -> None:
    """Makes the task and measures it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--task", help="The folder of a task that has run, instead of a new one.")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mloc-") as name:
        task = options.task or run_task(Path(name), options.rows)
        size = Path(task, "responses.parquet").stat().st_size
        figures = measure(task, options.rounds)
    record("viewer", {"rows": options.rows, "parquet_mib": size / 2**20, **figures})


if __name__ == "__main__":
    main()
