"""Renews the pictures of the docs: `make screenshots`. Needs Chromium and playwright.

It runs templates of the library in a home of its own, and looks at what they left in
Dagster's UI and in the viewer, as a person does.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.request import urlopen

from playwright.sync_api import Page, sync_playwright

ROOT = Path(__file__).parents[1]
IMAGES = ROOT / "docs" / "images"
COMMANDS = Path(sys.executable).parent
STAGES = "stages_draft_refine_format"
SHARDED = "dataset_sharded"
SCORED = "scored"
SEARCHED = "rag_handbook"

LAUNCHED = """\
ops:
  draft_refine_format__draft:
    config:
      inference:
        temperature: 0.9
        max_tokens: 32
"""


def main() -> None:
    """Takes all pictures."""
    with tempfile.TemporaryDirectory(prefix="mloc-") as folder:
        environment = {**os.environ, "MLOC_HOME": folder, "MLOC_RESULTS_URL": f"{folder}/results"}
        scored = run_template(SCORED, environment)
        run_template(STAGES, environment)
        sharded = run_template(SHARDED, environment)
        searched = run_template(SEARCHED, environment)
        try:
            with serving("dagster", "dev", "-p", environment=environment) as url:
                dagster_pages(url, sharded)
            with serving(
                "mloc", "view", scored, "--no-browser", "--port", environment=environment
            ) as url:
                viewer_page(url, f"{scored}-answer", "viewer.png")
                viewer_page(url, f"{searched}-{SEARCHED}", "viewer-passages.png")
        finally:
            _run([COMMANDS / "mloc", "down"], environment)


def run_template(name: str, environment: Mapping[str, str]) -> str:
    """Runs a template of the library here; returns the id of its run."""
    before = set(_tasks(environment))
    template = ROOT / "templates" / "core" / f"{name}.yaml"
    _run([COMMANDS / "mloc", "run", template], environment)
    return min(set(_tasks(environment)) - before)[:36]


def _run(command: Sequence[Path | str], environment: Mapping[str, str]) -> None:
    subprocess.run(command, env=environment, cwd=ROOT, check=True)  # noqa: S603


def _tasks(environment: Mapping[str, str]) -> list[str]:
    folder = Path(environment["MLOC_RESULTS_URL"])
    return [each.name for each in folder.glob("[!.]*")] if folder.is_dir() else []


@contextmanager
def serving(*command: str, environment: Mapping[str, str]) -> Iterator[str]:
    """Runs a server on a free port; the port is its last argument."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = [COMMANDS / command[0], *command[1:], str(port)]
    process = subprocess.Popen(  # noqa: S603
        arguments, env=environment, cwd=ROOT, start_new_session=True
    )
    url = f"http://127.0.0.1:{port}"
    try:
        _wait_for(url, process)
        yield url
    finally:
        os.killpg(process.pid, signal.SIGINT)
        process.wait(60)


def _wait_for(url: str, process: subprocess.Popen[bytes]) -> None:
    while process.poll() is None:
        try:
            with urlopen(url, timeout=5):  # noqa: S310
                return
        except OSError:
            time.sleep(0.2)
    raise SystemExit(f"a server ended with {process.returncode}")


def dagster_pages(url: str, sharded: str) -> None:
    """Takes the lineage of a result, a run, a result's page, the timeline and the launchpad."""
    location = "locations/__repository__@mloc_dagster.definitions"
    with _browsing() as page:
        page.goto(f"{url}/assets/draft-refine-format/format_responses?view=lineage&lineageDepth=9")
        page.get_by_text("draft_responses", exact=True).first.wait_for()
        _settle(page)
        page.screenshot(path=IMAGES / "asset-graph.png", clip=_box(top=0, height=1000))
        page.goto(f"{url}/runs/{sharded}")
        page.get_by_text("Success", exact=True).first.wait_for()
        _settle(page)
        page.screenshot(path=IMAGES / "run-gantt.png", clip=_box(top=0, height=630))
        page.goto(f"{url}/assets/scored/answer_responses?view=events")
        page.get_by_text("usage").first.wait_for()
        _settle(page)
        page.screenshot(path=IMAGES / "asset-page.png", clip=_box(top=0, height=1000))
        page.goto(f"{url}/overview/activity/timeline")
        page.get_by_text("draft_refine_format").first.wait_for()
        _settle(page)
        page.screenshot(path=IMAGES / "timeline.png", clip=_box(top=0, height=290))
        page.goto(f"{url}/{location}/jobs/draft_refine_format")
        page.get_by_role("button", name="Materialize all").first.click(modifiers=["Shift"])
        page.get_by_text("No errors").first.wait_for()
        editor = page.locator(".bp5-portal .CodeMirror-scroll")
        editor.click(position={"x": 200, "y": 200})
        page.keyboard.press("Control+A")
        page.keyboard.insert_text(LAUNCHED)
        page.get_by_text("No errors").first.wait_for()
        _settle(page)
        page.locator(".bp5-dialog").last.screenshot(path=IMAGES / "launchpad.png")


def viewer_page(url: str, task_id: str, name: str) -> None:
    """Takes the viewer with a row opened."""
    with _browsing() as page:
        page.goto(f"{url}/ui/tasks/{task_id}")
        page.locator(".ag-row").first.click()
        _settle(page)
        page.screenshot(path=IMAGES / name)


@contextmanager
def _browsing() -> Iterator[Page]:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser.new_page(viewport={"width": 1600, "height": 1000})
        browser.close()


def _settle(page: Page) -> None:
    """Waits until nothing loads or moves any more."""
    page.wait_for_load_state("networkidle")
    page.wait_for_function("() => !document.body.innerText.includes('Loading')")
    page.wait_for_timeout(1500)


def _box(*, top: int, height: int) -> dict[str, float]:
    return {"x": 230, "y": top, "width": 1370, "height": height}


if __name__ == "__main__":
    main()
