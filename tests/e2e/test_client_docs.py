"""The examples of docs/client.md, run against the real API."""

from __future__ import annotations

import re
import threading
import uuid
from contextlib import closing
from pathlib import Path

import pytest

from mloc_dagster.api import create_app
from mloc_dagster.ledger import Ledger, PlannedRun, TaskChange, TaskEntry
from mloc_dagster.results import open_store
from mloc_dagster.settings import settings
from mloc_dagster.wire import TaskState
from tests.e2e.api_process import served
from tests.e2e.conftest import ROOT

pytestmark = pytest.mark.e2e

BLOCK = re.compile(r"^```py\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def work(ledger: Ledger, stopped: threading.Event) -> None:
    """Ends every task of these docs, as dispatcher and workers would."""
    while not stopped.wait(0.02):
        for task in ledger.waiting(10_000):
            if task.owner == "docs":
                end(ledger, task)


def end(ledger: Ledger, task: TaskEntry) -> None:
    run_id = str(uuid.uuid4())
    folder = open_store().task(task.task_id)
    folder.write_bytes("responses.jsonl", b'{"index": 0, "output": "one"}\n')
    folder.write_bytes("responses.json", b'{"result": {"ok": true}}')
    folder.write_bytes("logs/shard-0000.log", b"2026-01-01T00:00:00.5Z warming up\n")
    ledger.plan_runs(
        [PlannedRun(run_id=run_id, workflow_id=task.workflow_id, task_ids=(task.task_id,))]
    )
    ledger.change([TaskChange(task_id=task.task_id, run_id=run_id, state=TaskState.DONE)])
    ledger.end_runs([run_id])


def test_the_examples_run(
    session_home: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("MLOC_HOME", str(session_home))
    monkeypatch.chdir(tmp_path)
    settings.cache_clear()
    path = ROOT / "docs" / "client.md"
    text = "\n".join(BLOCK.findall(path.read_text(encoding="utf-8")))
    stopped = threading.Event()
    with closing(Ledger.open()) as ledger, served(create_app(ledger)) as url:
        monkeypatch.setenv("MLOC_API_URL", url)
        settings.cache_clear()
        worker = threading.Thread(target=work, args=(ledger, stopped))
        worker.start()
        try:
            exec(compile(text, str(path), "exec"), names := {})
            names["client"].close()
        finally:
            stopped.set()
            worker.join()
    out = capsys.readouterr().out
    assert "0 one" in out
    assert "shard-0000 warming up" in out
    assert "there is no task" in out
    assert "'apiVersion'" in out
    assert {"rows.jsonl", "answers.json", "task.tar"} <= {each.name for each in tmp_path.iterdir()}
