"""`import mloc`: real runs in this process, in a notebook's kernel, and on a stack."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import dagster as dg
import nbclient
import nbformat
import pandas as pd
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest

import mloc
from mloc_dagster.ops import WORKFLOW_TAG
from mloc_dagster.results import open_store
from mloc_dagster.settings import settings
from tests.e2e.stack import Stack

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

QUESTIONS = [
    {"question": f"What is {first} + {second}?", "answer": str(first + second), "first": first}
    for first in range(4)
    for second in range(3)
]
WRONG = [{**each, "answer": "none"} if each["first"] == 2 else each for each in QUESTIONS]

SLOW = """\
apiVersion: mloc/v1
kind: EchoTask
metadata: {name: slow}
spec:
  taskType: echo
  parallel: {max_shards: 2}
  echo: {delay_s: 0.05}
  data: {type: list, items: [a, b, c, d, e, f, g, h]}
"""


@pytest.fixture(scope="module")
def place(
    session_home: Path,
    session_instance: dg.DagsterInstance,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A results folder; the session's database saves each test a start of PostgreSQL."""
    return tmp_path_factory.mktemp("face") / "results"


@pytest.fixture(autouse=True)
def here(place: Path, session_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Has the tests of this module share a home and a store."""
    monkeypatch.setenv("MLOC_HOME", str(session_home))
    monkeypatch.setenv("MLOC_RESULTS_URL", str(place))
    monkeypatch.setenv("MLOC_FLUSH_ROWS", "1")  # a part per row: whatever is finished is there
    settings.cache_clear()


def scored(**spec: Any) -> dict[str, Any]:
    return mloc.template(
        "inference",
        name="sums",
        model="tiny-chat",
        data={"column": "question"},
        inference={"temperature": 0, "max_tokens": 8},
        evaluation={"reference": "answer", "metrics": ["exact_match", "f1"]},
        **spec,
    )


def quietly(template: Any = None, **options: Any) -> mloc.Result:
    return mloc.run(template, progress=False, **options)


@pytest.fixture(scope="module")
def result(session_home: Path, place: Path) -> mloc.Result:
    """Scored answers, of which the third quarter is wrong."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLOC_HOME", str(session_home))
        settings.cache_clear()
        return quietly(scored(), data=pa.Table.from_pylist(WRONG), results=place)


def test_a_result_has_scores_and_what_the_rows_brought_along(result: mloc.Result) -> None:
    assert result.metrics["exact_match"] == pytest.approx(0.75)
    assert result.metrics["rows"] == len(WRONG)
    worst = result.worst("exact_match", 3).to_pylist()
    assert [(each["exact_match"], each["answer"], each["first"]) for each in worst] == [
        (0.0, "none", 2)
    ] * 3
    assert result.table().column_names[-5:] == ["question", "answer", "first", "exact_match", "f1"]
    assert [row["first"] for row in result.rows(where="exact_match < 1")] == [2, 2, 2]
    assert next(result.rows(error=True), None) is None
    assert result.table(["answer"], where="first == 1 and exact_match > 0").num_rows == 3


def test_a_result_becomes_what_its_reader_works_with(result: mloc.Result, tmp_path: Path) -> None:
    assert isinstance(result.to_pandas(), pd.DataFrame)
    assert result.to_polars(where="first > 0")["first"].to_list() == [1, 1, 1, 2, 2, 2, 3, 3, 3]
    parquet = pq.read_table(result.export(tmp_path / "new" / "wrong.parquet", where="f1 < 1"))
    assert parquet.equals(result.table(where="f1 < 1"))
    lines = result.export(tmp_path / "wrong.jsonl", where="f1 < 1").read_text().splitlines()
    assert [json.loads(line)["answer"] for line in lines] == ["none"] * 3
    assert pa_csv.read_csv(result.export(tmp_path / "all.csv")).num_rows == len(WRONG)
    assert [each.name for each in tmp_path.iterdir() if each.name.startswith(".")] == []


def test_a_result_shows_itself(result: mloc.Result) -> None:
    assert "exact_match=0.75" in repr(result)
    shown = result._repr_html_()
    assert "<th>exact_match</th>" in shown
    assert "What is 0 + 0?" in shown
    assert "… and 7 more rows" in shown
    assert result.plot("f1")._repr_png_().startswith(b"\x89PNG")  # type: ignore[attr-defined]
    with pytest.raises(mloc.InputError, match="there is no figure 'f2'"):
        result.plot("f2")


def test_what_models_write_is_no_html() -> None:
    found = quietly("echo", data=["<script>alert(1)</script>"])
    assert "<script>" not in found._repr_html_()


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        (lambda each: each.table(where="exact_match = 1"), "write == for equal"),
        (lambda each: list(each.rows(where="exact_mach < 1")), "did you mean 'exact_match'?"),
        (lambda each: each.table(where="answer < 1"), "which have no order"),
        (lambda each: each.table(["anser"]), "did you mean 'answer'?"),
        (lambda each: each.worst("f2"), "rows have no column 'f2'"),
        (lambda each: each.export("rows.txt"), "which says the format"),
    ],
)
def test_what_rows_do_not_have_is_said(result: mloc.Result, ask: Any, said: str) -> None:
    with pytest.raises(mloc.InputError) as caught:
        ask(result)
    assert said in str(caught.value)


def test_a_result_is_found_again_by_its_id(result: mloc.Result, place: Path) -> None:
    again = mloc.result(result.task_id)
    assert again.table().equals(result.table())
    assert mloc.result(result.task_id, results=place).metrics == result.metrics
    with pytest.raises(mloc.InputError, match="did you mean"):
        mloc.result(result.task_id[:-1] + "_", results=place)


def test_stages_have_results_of_their_own(place: Path) -> None:
    found = quietly("scored")
    assert list(found.tasks) == ["answer", "again"]
    assert (found.name, found.tasks["answer"].metrics["rows"]) == ("again", 24)
    assert mloc.result(found.workflow_id).task_id == found.task_id
    assert mloc.result(found.tasks["answer"].task_id).name == "answer"


def test_results_go_where_they_are_asked_to_and_nowhere_else(tmp_path: Path, place: Path) -> None:
    before = set(place.iterdir()) if place.exists() else set()
    found = quietly("echo", results=tmp_path / "elsewhere")
    assert Path(found.folder).parent == tmp_path / "elsewhere"
    assert (set(place.iterdir()) if place.exists() else set()) == before
    assert os.environ["MLOC_RESULTS_URL"] == str(place)


def test_a_failed_task_says_what_the_command_says_and_has_its_rows(tmp_path: Path) -> None:
    path = tmp_path / "poison.yaml"
    path.write_text(SLOW.replace("delay_s: 0.05", "poison: [1, 2]"))
    with pytest.raises(mloc.TaskFailedError) as caught:
        quietly(path)
    error = caught.value
    first, again = str(error).splitlines()
    command = [sys.executable, "-m", "mloc_dagster.cli", "run", str(path), "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert first == done.stderr.splitlines()[0]
    assert again == (
        "finished rows are kept; go on with: "
        f'mloc.run(resume="{error.workflow_id}", retry_errors=True)'
    )
    assert error.task_id == error.workflow_id
    assert error.result is not None
    assert [row["index"] for row in error.result.rows(error=True)] == [1, 2]


def test_rows_of_the_caller_leave_no_file_behind(session_home: Path) -> None:
    found = quietly("echo", data=({"prompt": each, "length": len(each)} for each in ("a", "bb")))
    assert found.table(["output", "length"]).to_pylist() == [
        {"output": "a", "length": 1},
        {"output": "bb", "length": 2},
    ]
    assert list((session_home / "given-rows").iterdir()) == []


def test_progress_is_told_and_what_it_raises_stops_the_run() -> None:
    told: list[mloc.Progress] = []
    found = mloc.run(SLOW, progress=told.append)
    assert [each.ended for each in told][-1]
    assert {(each.task_id, each.name, each.total) for each in told} == {(found.task_id, "slow", 8)}

    def stop(_: mloc.Progress) -> None:
        raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        mloc.run(SLOW, progress=stop)


def test_a_run_within_a_run_is_refused() -> None:
    with pytest.raises(mloc.InputError, match="no task from within another one"):
        mloc.run(SLOW, progress=lambda _: mloc.run("echo"))


def test_runs_in_threads_are_each_their_own() -> None:
    heard: dict[str, set[str]] = {}

    def run(name: str) -> list[str]:
        told = heard.setdefault(name, set())
        found = mloc.run(
            SLOW,
            data=[f"{name}{place}" for place in range(4)],
            progress=lambda each: told.add(each.task_id),
        )
        assert told == {found.task_id}
        return [row["output"] for row in found.rows()]

    with ThreadPoolExecutor(2) as pool, mloc.session():
        one, other = pool.map(run, ["x", "y"])
    assert (one, other) == (["x0", "x1", "x2", "x3"], ["y0", "y1", "y2", "y3"])


def models_in_memory() -> list[int]:
    from transformers import PreTrainedModel

    gc.collect()
    return [id(each) for each in gc.get_objects() if issubclass(type(each), PreTrainedModel)]


def test_models_stay_loaded_in_a_session_and_no_longer() -> None:
    before = models_in_memory()
    with mloc.session():
        quietly(scored(), data=QUESTIONS)
        loaded = models_in_memory()
        quietly(scored(), data=QUESTIONS[:2])
        assert models_in_memory() == loaded != before
    assert models_in_memory() == before
    quietly(scored(), data=QUESTIONS[:2])
    assert models_in_memory() == before


def test_a_stream_yields_each_row_once_and_then_has_the_result() -> None:
    async def main() -> None:
        stream = mloc.stream(SLOW, data=[{"prompt": each, "n": 1} for each in "abcdefgh"])
        rows = [(row["index"], row["output"], row["n"]) async for row in stream]
        assert sorted(rows) == [(place, each, 1) for place, each in enumerate("abcdefgh")]
        assert stream.result().metrics["rows"] == 8
        with pytest.raises(RuntimeError, match="once"):
            aiter(stream)

    asyncio.run(main())


def test_a_stream_that_is_left_early_stops_and_can_go_on(
    session_instance: dg.DagsterInstance,
) -> None:
    async def main() -> str:
        stream = mloc.stream(SLOW, set={"spec.echo.delay_s": 0.3})
        async for _ in stream:
            break
        assert stream.workflow_id is not None
        return stream.workflow_id

    workflow_id = asyncio.run(main())  # which waits for what the loop left
    (run,) = session_instance.get_runs(dg.RunsFilter(tags={WORKFLOW_TAG: workflow_id}))
    assert run.status is dg.DagsterRunStatus.CANCELED
    task = open_store().task(workflow_id)
    assert not task.exists("summary.json")
    kept = set(task.list("shards", recursive=True))

    async def rest() -> list[int]:
        return [row["index"] async for row in mloc.stream(resume=workflow_id)]

    assert sorted(asyncio.run(rest())) == list(range(8))
    assert kept < set(task.list("shards", recursive=True))


def test_a_stream_raises_what_the_run_would() -> None:
    rows: list[int] = []

    async def main() -> None:
        async for row in mloc.stream(SLOW, set={"spec.echo.poison": [0, 1, 2]}):
            rows.append(row["index"])

    with pytest.raises(mloc.TaskFailedError, match="3 of 8 rows ended with an error"):
        asyncio.run(main())
    assert sorted(rows) == list(range(8))


def test_run_works_where_an_event_loop_runs() -> None:
    async def main() -> mloc.Result:
        return quietly("echo")

    assert asyncio.run(main()).metrics["errors"] == 0


INTERRUPTED = """
import os, signal, sys, threading
import mloc

def interrupt(progress):
    if progress.done:
        threading.Thread(target=os.kill, args=(os.getpid(), signal.SIGINT)).start()

try:
    mloc.run(sys.argv[1], set={"spec.echo.delay_s": 0.3}, progress=interrupt)
except KeyboardInterrupt as stopped:
    print(stopped.workflow_id)
    print(stopped)
"""


def test_an_interrupted_run_goes_on_where_it_was(tmp_path: Path, place: Path) -> None:
    path = tmp_path / "slow.yaml"
    path.write_text(SLOW)
    command = [sys.executable, "-c", INTERRUPTED, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    workflow_id, said = done.stdout.splitlines()
    assert said == f'finished rows are kept; go on with: mloc.run(resume="{workflow_id}")'
    shards = place / workflow_id
    kept = {each: each.read_bytes() for each in shards.glob("shards/*/part-*")}
    assert kept
    found = quietly(resume=workflow_id)
    assert [row["output"] for row in found.rows()] == list("abcdefgh")
    assert all(each.read_bytes() == content for each, content in kept.items())


def test_estimate_counts_rows_of_the_caller() -> None:
    (found,) = mloc.estimate(SLOW, data=["one", "two"])
    assert found.estimate.rows.value == 2


NOTEBOOK = [
    "import json, mloc",
    "rows = (json.loads(line) for line in open('questions.jsonl'))",
    """\
result = mloc.run('sums.yaml', data=rows)
worst = result.worst('exact_match', 3)
wrong = result.table(where='exact_match < 1')
result.export('wrong.parquet', where='exact_match < 1')
result""",
    "worst.select(['question', 'answer', 'output', 'exact_match']).to_pandas()",
    "result.plot()",
    "[row['output'] async for row in mloc.stream('echo', data=['a', 'b'])]",
    "mloc.run('sums.yml')",
]


def test_the_worst_rows_are_found_and_exported_in_a_notebook(tmp_path: Path) -> None:
    (tmp_path / "sums.yaml").write_text(json.dumps(scored()))  # JSON is YAML
    (tmp_path / "questions.jsonl").write_text("\n".join(map(json.dumps, WRONG)))
    notebook = nbformat.v4.new_notebook(cells=list(map(nbformat.v4.new_code_cell, NOTEBOOK)))
    client = nbclient.NotebookClient(
        notebook, timeout=600, allow_errors=True, resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute(env={**os.environ, "PYDEVD_DISABLE_FILE_VALIDATION": "1"})
    *_, ran, shown, plotted, streamed, wrong = [cell.outputs for cell in notebook.cells]
    # Without ipywidgets tqdm, which transformers imports, warns in each kernel.
    progress, html = (each for each in ran if each.output_type != "stream")
    assert 'value="12" max="12"' in progress.data["text/html"]
    assert "<th>exact_match</th>" in html.data["text/html"]
    assert shown[0].data["text/html"].count("<td>none</td>") == 3
    assert "image/png" in plotted[0].data
    assert streamed[0].data["text/plain"] == "['a', 'b']"
    (error,) = wrong
    assert (error.ename, error.evalue) == (
        "TemplateError",
        "sums.yml: no such file; did you mean 'sums.yaml'?",
    )
    exported = pq.read_table(tmp_path / "wrong.parquet")
    assert exported["answer"].to_pylist() == ["none"] * 3
    assert exported["first"].to_pylist() == [2, 2, 2]


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    with (
        tempfile.TemporaryDirectory(prefix="mloc-") as folder,
        Stack(Path(folder) / "home", workers=1, run_workers=1, api=True) as stack,
    ):
        yield stack


@pytest.fixture
def on_stack(stack: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Only the stack's home leads to it: the results that are read here are others."""
    monkeypatch.setenv("MLOC_HOME", str(stack.layout.home))
    monkeypatch.setenv("MLOC_RESULTS_URL", str(tmp_path / "results"))
    monkeypatch.delenv("MLOC_API_URL", raising=False)
    monkeypatch.delenv("MLOC_API_PORT", raising=False)
    settings.cache_clear()
    return tmp_path


def test_tasks_are_submitted_to_the_stack_of_this_home(on_stack: Path, stack: Stack) -> None:
    with mloc.Client() as client:
        assert client.url == f"http://127.0.0.1:{stack.api_port}"
    found = mloc.submit(SLOW, data=pd.DataFrame(QUESTIONS), set={"spec.echo.delay_s": 0}, wait=True)
    assert found.table(["prompt", "answer"]).to_pylist()[0] == {
        "prompt": "What is 0 + 0?",
        "answer": "0",
    }
    assert mloc.result(found.task_id).metrics["rows"] == len(QUESTIONS)
    assert list((stack.layout.home / "given-rows").iterdir()) == []

    (on_stack / "rows.jsonl").write_text('{"prompt": "sent along"}\n')
    file = on_stack / "file.yaml"
    file.write_text(SLOW.replace("{type: list, items: [a, b, c, d, e, f, g, h]}",
                                 "{type: dataset, url: rows.jsonl}"))  # fmt: skip
    submission = mloc.submit(file)
    assert [row["output"] for row in submission.wait().rows()] == ["sent along"]


def test_what_failed_on_a_stack_is_said(on_stack: Path) -> None:
    poison = {"spec.echo.poison": [0, 1], "spec.echo.delay_s": 0, "spec.retries.max": 0}
    with pytest.raises(mloc.TaskFailedError, match="2 of 8 rows ended with an error") as caught:
        mloc.submit(SLOW, set=poison, wait=True)
    with pytest.raises(mloc.TaskFailedError, match="2 of 8 rows ended with an error"):
        mloc.result(caught.value.task_id)
    with pytest.raises(mloc.TemplateError, match="unknown key 'ecko'"):
        mloc.submit(SLOW, set={"spec.ecko": 1})
