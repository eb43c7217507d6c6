"""A launch from Dagster's UI, clicked in a real browser, seen through to its end."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from mloc_dagster.results import open_store, read_record, read_rows
from mloc_dagster.settings import settings
from tests.e2e.browser import CHROMIUM, Browser
from tests.e2e.conftest import ROOT
from tests.e2e.webserver import serving

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on PATH"),
]

LOCATION = "locations/__repository__@mloc_dagster.definitions"

STAGES = """
apiVersion: mloc/v1
kind: EchoTask
metadata: {name: two-stages}
spec:
  taskType: echo
  parallel: {max_shards: 2}
  data: {type: list, items: [first row, second row]}
  stages:
    - name: draft
      spec: {}
    - name: final
      spec:
        data: {type: upstream, node: draft, text: "again: {output}"}
"""

ANSWERS = """
apiVersion: mloc/v1
kind: InferenceTask
metadata: {name: answers}
spec:
  taskType: inference
  model: {source: {type: builtin, identifier: tiny-chat}}
  inference: {temperature: 0, max_tokens: 4}
  data: {type: list, items: [first row, second row]}
"""

LAUNCHED = """\
ops:
  answers__task:
    config:
      inference:
        temperature: {temperature}
"""


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("launched")


@pytest.fixture(scope="module")
def served(
    session_home: Path,
    session_instance: dg.DagsterInstance,
    results: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[str]:
    """Dagster's UI on a library of two templates."""
    folder = tmp_path_factory.mktemp("ui")
    library = folder / "library"
    library.mkdir()
    (library / "stages.yaml").write_text(STAGES)
    (library / "answers.yaml").write_text(ANSWERS)
    environment = {
        **os.environ,
        "MLOC_HOME": str(session_home),
        "MLOC_RESULTS_URL": str(results),
        "MLOC_TEMPLATES_DIR": str(library),
    }
    command = [sys.executable, "-m", "dagster", "dev", "-p"]
    with serving(command, ROOT, environment, folder / "dev.log") as url:
        yield url


@pytest.fixture
def webserver(
    served: str, instance: dg.DagsterInstance, results: Path, monkeypatch: pytest.MonkeyPatch
) -> str:
    """Its address; the store of this process is that of its runs."""
    monkeypatch.setenv("MLOC_RESULTS_URL", str(results))
    settings.cache_clear()
    return served


def test_a_template_launched_from_the_launchpad_leaves_results_and_lineage(
    webserver: str, instance: dg.DagsterInstance
) -> None:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = Browser(playwright)
        page = browser.page
        page.goto(f"{webserver}/{LOCATION}/jobs/two_stages")
        browser.click(page.get_by_role("button", name="Materialize all").first)
        browser.shown(page.get_by_text("Launched run"))
        (launched,) = instance.get_runs(dg.RunsFilter(job_name="two_stages"))
        run_id = launched.run_id
        page.goto(f"{webserver}/runs/{run_id}")
        browser.shown(page.get_by_text("Success", exact=True).first)
        page.goto(f"{webserver}/assets/two-stages/final_responses?view=lineage&lineageDepth=9")
        for asset in ("draft_responses", "final_responses"):
            browser.shown(page.get_by_text(asset, exact=True).first)
        browser.close()
    rows = read_rows(open_store().task(f"{run_id}-final"))
    assert [row.output for row in rows] == ["again: first row", "again: second row"]
    run = instance.get_run_by_id(run_id)
    assert run is not None
    assert run.status is dg.DagsterRunStatus.SUCCESS


def test_the_temperature_is_changed_in_the_launchpad(
    webserver: str, instance: dg.DagsterInstance
) -> None:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = Browser(playwright)
        page = browser.page
        page.goto(f"{webserver}/{LOCATION}/jobs/answers")
        materialize = page.get_by_role("button", name="Materialize").first
        browser.shown(materialize).click(modifiers=["Shift"])
        browser.shown(page.get_by_text("Launchpad (configure assets)"))
        editor = page.locator(".bp5-portal .CodeMirror-scroll")
        browser.shown(page.get_by_text("No errors"))

        def write(temperature: str) -> None:
            editor.click(position={"x": 200, "y": 200})
            page.keyboard.press("Control+A")
            page.keyboard.insert_text(LAUNCHED.format(temperature=temperature))

        write("hot")
        browser.shown(page.get_by_text('is not valid for expected type "Float"').first)
        write("0.9")
        browser.shown(page.get_by_text("No errors"))
        browser.click(page.get_by_role("button", name="Materialize").last)
        page.wait_for_url("**/runs/*")
        browser.shown(page.get_by_text("Success", exact=True).first)
        browser.close()
    (launched,) = instance.get_runs(dg.RunsFilter(job_name="answers"))
    spec = read_record(open_store().task(launched.run_id)).spec
    inference = spec["inference"]
    assert isinstance(inference, dict)
    assert (inference["temperature"], inference["max_tokens"]) == (0.9, 4)
