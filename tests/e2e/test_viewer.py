"""Results looked at in a real browser, from `mloc run` to the exported rows."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow.parquet as pq
import pytest

from mloc_dagster.api import create_app
from mloc_dagster.results import (
    FunctionCall,
    Message,
    OutputRow,
    Passage,
    ShardWriter,
    ToolCall,
    TrainingSummary,
    check_citations,
    open_store,
    read_plan,
    write_training,
)
from mloc_dagster.schema import RowEvaluation
from mloc_dagster.settings import settings
from tests.api_server import served_ledger
from tests.e2e.api_process import served
from tests.e2e.browser import CHROMIUM, Browser
from tests.viewed_task import make_task

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page, Playwright

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on PATH"),
]

ROWS = 1_319
"""As many as the test split of GSM8K has."""

WRONG = range(7, ROWS, 101)

_WAIT_MS = 120_000

TEMPLATE = """\
apiVersion: mloc/v1
kind: EchoTask
metadata: {name: word-problems}
spec:
  parallel: {max_shards: 4}
  data: {type: dataset, url: problems.jsonl, column: question}
  evaluation:
    reference: answer
    metrics: [numeric]
"""


def problems() -> Iterator[dict[str, str]]:
    """Questions that end with the number that an echo answers; some of these are wrong."""
    for index in range(ROWS):
        right = index * 3 + 1
        said = right + 1 if index in WRONG else right
        yield {
            "question": f"Ann packs {index} boxes of 3 pens and one pen more. Pens: {said}",
            "answer": f"{index} * 3 + 1 = {right}\n#### {right}",
            "level": "hard" if index % 2 else "easy",
        }


@contextmanager
def viewer(*arguments: str) -> Iterator[str]:
    """Runs `mloc view`; yields the address that it prints."""
    command = [sys.executable, "-m", "mloc_dagster.cli", "view", "--no-browser", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            found = re.match(r"http://127\.0\.0\.1:\d+/ui/\S*", line)
            assert found is not None, line
            yield found[0]
        finally:
            process.send_signal(signal.SIGINT)
            ended = process.wait(60)
    assert ended == 0


@pytest.fixture(scope="module")
def playwright() -> Iterator[Playwright]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as started:
        yield started


@pytest.fixture
def browser(playwright: Playwright) -> Iterator[Browser]:
    """A browser in which no page had an error of its own, nor one against its policy."""
    started = Browser(playwright)
    errors: list[str] = []
    started.page.on("pageerror", lambda error: errors.append(str(error)))
    started.page.on(
        "console", lambda said: errors.append(said.text) if "Content Security" in said.text else 0
    )
    yield started
    started.close()
    assert errors == []


def click(locator: Locator) -> None:
    """Clicks on a part of the page when it is there."""
    shown(locator).click()


def shown(locator: Locator) -> Locator:
    """Returns a part of the page when it is there; a page that follows a task is never still."""
    locator.wait_for(timeout=_WAIT_MS)
    return locator


def cell(page: Page, row: int, column: str) -> Locator:
    return page.locator(f"[role=row][row-index='{row}'] [col-id='{column}']")


def downloaded(browser: Browser, kind: str) -> bytes:
    page = browser.page
    click(page.get_by_text("Export", exact=True))
    with page.expect_download() as started:
        page.get_by_role("link", name=kind).click()
    return Path(started.value.path()).read_bytes()


def test_the_worst_rows_of_a_run_are_found_filtered_and_exported(
    tmp_path: Path, session_home: Path, browser: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLOC_HOME", str(session_home))
    (tmp_path / "problems.jsonl").write_text("\n".join(map(json.dumps, problems())))
    (tmp_path / "template.yaml").write_text(TEMPLATE)
    done = subprocess.run(
        [sys.executable, "-m", "mloc_dagster.cli", "run", str(tmp_path / "template.yaml")],
        capture_output=True, text=True, check=True, env=dict(os.environ),
    )  # fmt: skip
    (command,) = re.findall(r"mloc view (\S+)$", done.stderr, re.MULTILINE)
    with viewer(command) as address:
        page = browser.page
        page.goto(address)
        shown(page.get_by_text(f"{ROWS:,} rows", exact=True))
        page.get_by_role("button", name="numeric: worst first").click()
        first = WRONG[0]
        shown(cell(page, 0, "index").get_by_text(str(first), exact=True))
        click(cell(page, 0, "output"))
        detail = page.get_by_role("complementary", name="The chosen row")
        shown(detail.get_by_text("answer · the right answer"))
        assert f"#### {first * 3 + 1}" in detail.inner_text()
        assert "numeric 0" in " ".join(detail.inner_text().split())
        page.keyboard.press("j")
        shown(detail.get_by_role("heading", name=f"Row {WRONG[1]}"))
        page.keyboard.press("Escape")
        shown(page.get_by_role("button", name="numeric < 1")).click()
        shown(page.get_by_text(f"{len(WRONG)} of {ROWS:,} rows"))
        rows = list(csv.DictReader(io.StringIO(downloaded(browser, "CSV").decode())))
        table = pq.read_table(io.BytesIO(downloaded(browser, "Parquet")))
    assert [int(row["index"]) for row in rows] == list(WRONG)
    inputs = list(problems())
    for row in rows:
        given = inputs[int(row["index"])]
        assert {name: row[name] for name in given} == given
        assert (row["numeric"], row["output"]) == ("0.0", given["question"])
    assert table["index"].to_pylist() == list(WRONG)
    assert {"question", "answer", "level", "numeric"} <= set(table.column_names)


HTML = "<img src=x onerror=\"document.title='broken in'\"><b>bold</b>"


def test_what_a_row_holds_is_shown_as_text(browser: Browser) -> None:
    inputs = [{"question": HTML, "answer": HTML}, {"question": "long", "answer": "b"}]
    outputs = [
        OutputRow(0, HTML, f"<think>hm {HTML}</think>said {HTML}", custom_id=HTML),
        OutputRow(1, "long", "word " * 100_000),
    ]
    make_task(open_store(), "html", inputs, outputs)
    with viewer("html") as address:
        page = browser.page
        page.goto(address)
        shown(cell(page, 0, "prompt").get_by_text(HTML))
        click(cell(page, 0, "prompt"))
        detail = page.get_by_role("complementary", name="The chosen row")
        click(detail.get_by_text("Reasoning", exact=True).first)
        assert detail.inner_text().count(HTML) >= 3
        assert page.locator("img, #main b:has-text('bold')").count() == 0
        assert page.title() != "broken in"
        click(cell(page, 1, "output"))
        shown(detail.get_by_role("heading", name="Row 1"))
        assert detail.locator("pre").nth(1).inner_text().count("word") == 100_000


@pytest.mark.parametrize("done", [True, False])
def test_calls_and_thoughts_are_shown(browser: Browser, done: bool) -> None:
    asked = ToolCall("call_1", FunctionCall("lookup", '{"key": "first"}'))
    then = ToolCall("call_2", FunctionCall("lookup", '{"key": "second", "deep": {"most": 3}}'))
    chat = [
        Message("user", "What is second?"),
        Message("assistant", "", tool_calls=[asked], reasoning="The first one first."),
        Message("tool", '{"found": "see second"}', tool_call_id="call_1"),
    ]
    row = OutputRow(
        *(0, chat, "", "tool_calls"), tool_calls=[then], reasoning=f"Now the second. {HTML}"
    )
    name = f"calls-{done}"
    make_task(open_store(), name, [{"question": "What is second?"}], [row], done=done)
    with viewer(name) as address:
        page = browser.page
        page.goto(address)
        shown(cell(page, 0, "tool_calls").get_by_text('lookup({"key": "second"'))
        click(cell(page, 0, "prompt"))
        detail = page.get_by_role("complementary", name="The chosen row")
        shown(detail.get_by_role("heading", name="Prompt · tool · lookup"))
        shown(detail.locator("pre").filter(has_text="see second"))
        shown(detail.locator("pre.call").filter(has_text='"most": 3'))
        assert detail.locator("pre.call").count() == 2
        assert "null" not in detail.inner_text()
        thoughts = detail.locator("details").filter(has_text="Now the second.").first
        assert HTML not in thoughts.inner_text(), "thoughts are folded"
        thoughts.locator("summary").click()
        assert HTML in thoughts.inner_text()


def test_citations_of_an_answer_lead_to_their_passages(browser: Browser) -> None:
    passages = [
        Passage("c1", f"Paris is in France. {HTML}", HTML, 0, 19, heading=[HTML], rerank=0.9),
        Passage("c2", "Lyon is as well.", "lyon.md", 20, 36, score=0.2),
    ]
    said = f"Both are [2][7]. {HTML}"
    citations, problem = check_citations(said, passages, required=True)
    row = OutputRow(
        0, "Where is Lyon?", said, retrieved=passages, citations=citations, citation_error=problem
    )
    make_task(
        *(open_store(), "cited", [{"question": "q", "should": "lyon.md"}], [row]),
        evaluation=RowEvaluation.model_validate({"relevant_column": "should", "metrics": ["mrr"]}),
        leaves=("retrieved", "citations", "citation_error", "abstained", "left_out"),
    )
    with viewer("cited") as address:
        page = browser.page
        page.goto(address)
        click(cell(page, 0, "output"))
        detail = page.get_by_role("complementary", name="The chosen row")
        shown(detail.get_by_text("2 passages found, 1 relevant"))
        first, second = (detail.get_by_role("region", name=f"Passage {n}") for n in (1, 2))
        assert first.inner_text().count(HTML) == 3
        assert "cited" not in first.inner_text()
        assert "rerank 0.9" in " ".join(first.inner_text().split())
        assert {"cited", "relevant"} <= set(second.inner_text().split())
        assert "there is no passage" not in detail.inner_text()
        shown(detail.get_by_text("Citations: it cites [7], and the last passage is [2]"))
        click(detail.get_by_role("button", name="Passage 2: lyon.md"))
        assert second.evaluate("each => each === document.activeElement")
        assert detail.get_by_role("button", name=re.compile("Passage 7")).count() == 0
        assert page.locator("img, #main b:has-text('bold')").count() == 0


def test_a_task_is_followed_while_it_runs(browser: Browser) -> None:
    inputs = [{"question": f"q{each}", "answer": "a"} for each in range(4)]
    folder = make_task(open_store(), "live", inputs, [OutputRow(0, "q0", "first")], done=False)
    with viewer("live") as address:
        page = browser.page
        page.goto(address)
        shown(page.get_by_text("1 of 4 rows (25 %)"))
        plan = read_plan(folder)
        assert plan is not None
        with ShardWriter(folder, plan.shards[0], 1, flush_rows=9, flush_interval_s=60) as writer:
            writer.write(OutputRow(1, "q1", error="boom", finish_reason="error"))
        shown(page.get_by_text("2 of 4 rows (50 %)"))
        shown(cell(page, 1, "error").get_by_text("boom"))
        page.get_by_role("tab", name="Shards").click()
        shown(page.get_by_role("img", name=re.compile("1 shard over")))


def test_two_tasks_are_compared_row_by_row(browser: Browser) -> None:
    inputs = [{"question": f"q{each}", "answer": "a"} for each in range(3)]
    for name, changed in (("first", "same"), ("second", "another answer")):
        outputs = [OutputRow(each, f"q{each}", changed if each == 1 else "x") for each in range(3)]
        make_task(open_store(), name, inputs, outputs)
    with viewer() as address:
        page = browser.page
        page.goto(address)
        for name in ("first", "second"):
            page.get_by_role("checkbox", name=f"Choose {name} to compare").check()
        page.get_by_role("button", name="Compare two").click()
        shown(page.get_by_text("3 rows in both"))
        page.get_by_role("button", name="Answers differ").click()
        shown(page.get_by_text("1 of 3 rows"))
        click(cell(page, 0, "prompt"))
        detail = page.get_by_role("complementary", name="The chosen row")
        shown(detail.locator("ins").first)
        assert "another answer" in detail.inner_text()


def test_a_training_shows_its_curves(browser: Browser) -> None:
    folder = open_store().task("trained")
    history = tuple({"step": float(step), "loss": 2.0 / (step + 1)} for step in range(20))
    figures = {
        "task_id": "trained", "task_type": "sft", "model": "m", "model_revision": "", "source": "s",
        "data_version": "d", "dataset_size": 3, "bad_rows": 0, "steps": 20, "seconds": 1.0,
        "metrics": {}, "history": history, "before": {"f1": 0.1}, "after": {"f1": 0.7},
        "final": "", "device": "cpu", "worker": "w",
        "started_at": "2026-01-01T00:00:00Z", "finished_at": "2026-01-01T00:00:01Z",
    }  # fmt: skip
    write_training(folder, TrainingSummary.model_validate(figures))
    with viewer("trained") as address:
        browser.page.goto(address)
        shown(browser.page.get_by_label("loss over steps").locator("canvas"))
        shown(browser.page.get_by_role("cell", name="0.7"))


def test_vectors_images_and_what_is_damaged_or_missing(browser: Browser) -> None:
    store = open_store()
    vector = [each / 100 for each in range(384)]
    make_task(
        store, "vectors", [{"question": "q", "answer": "a"}],
        [OutputRow(0, "q", embedding=vector)], vectors=True,
    )  # fmt: skip
    make_task(store, "damaged", [{"question": "q", "answer": "a"}], [OutputRow(0, "q", "a")])
    store.task("damaged").write_bytes("responses.parquet", b"PAR1")
    with viewer("vectors") as address:
        page = browser.page
        page.goto(address)
        shown(cell(page, 0, "embedding").get_by_text("384 numbers: 0, 0.01"))
        page.goto(address.replace("vectors", "damaged"))
        shown(page.get_by_text("responses.parquet of damaged is damaged").first)
        page.goto(address.replace("vectors", "vector"))
        shown(page.get_by_text("did you mean 'vectors'?"))


def test_the_tasks_of_a_sweep_are_listed_with_their_scores(
    tmp_path: Path, session_home: Path, browser: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLOC_HOME", str(session_home))
    (tmp_path / "problems.jsonl").write_text("\n".join(map(json.dumps, islice(problems(), 30))))
    (tmp_path / "template.yaml").write_text(TEMPLATE)
    done = subprocess.run(
        [sys.executable, "-m", "mloc_dagster.cli", "sweep", str(tmp_path / "template.yaml"),
         "--grid", "spec.echo.seed=1,2"],
        capture_output=True, text=True, check=True, env=dict(os.environ),
    )  # fmt: skip
    compared = [line.split() for line in done.stdout.splitlines() if line.startswith(("1", "2"))]
    assert [(line[0], line[2]) for line in compared] == [("1", "30"), ("2", "30")]
    (command,) = re.findall(r"mloc view (\S+)$", done.stderr, re.MULTILINE)
    with viewer(command) as address:
        page = browser.page
        page.goto(address)
        shown(page.get_by_role("link", name="seed-1")).click()
        shown(page.get_by_text("30 rows", exact=True))
        page.goto(address.replace(command, "another"))
        page.get_by_role("link", name="seed-1").wait_for(state="hidden")


def test_an_api_with_a_token_asks_for_it_once(
    browser: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLOC_API_TOKEN", "the-token")
    settings.cache_clear()
    make_task(open_store(), "t", [{"question": "q", "answer": "a"}], [OutputRow(0, "q", "out")])
    with served(create_app(served_ledger())) as url:
        page = browser.page
        page.goto(f"{url}/ui/tasks/t")
        page.get_by_label("Token of this API").fill("wrong")
        page.get_by_role("button", name="Sign in").click()
        shown(page.get_by_text("That token does not open this API."))
        page.get_by_label("Token of this API").fill("the-token")
        page.get_by_role("button", name="Sign in").click()
        shown(cell(page, 0, "output").get_by_text("out"))
        assert page.url == f"{url}/ui/tasks/t"
        assert page.evaluate("document.cookie") == ""
        page.get_by_role("link", name="API").click()
        authorized_docs(browser)
        page.goto(f"{url}/ui/")
        page.get_by_role("button", name="Sign out").click()
        shown(page.get_by_label("Token of this API"))


def authorized_docs(browser: Browser) -> None:
    """Gives the documentation the token, which it still has when it is loaded again."""
    page = browser.page
    click(page.get_by_role("button", name="Authorize").first)
    page.locator(".auth-container input").fill("the-token")
    page.locator(".auth-btn-wrapper button[type=submit]").click()
    shown(page.locator(".auth-container").get_by_text("Logout"))
    page.reload()
    shown(page.locator(".auth-wrapper .authorize.locked"))
