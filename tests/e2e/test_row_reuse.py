"""Rows that are computed once: through kills, beside their duplicates, and across tasks."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow.parquet as pq
import pytest

pytest.importorskip("torch")

from tests.e2e.test_cli_run import Place, indexes, started_task

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

ROWS = 150
DISTINCT = 100

CHAT = """\
apiVersion: mloc/v1
kind: InferenceTask
metadata: {{name: sums}}
spec:
  taskType: inference
  reuse: {reuse}
  enforce_cpu: true
  model:
    engine: transformers
    source: {{type: builtin, identifier: tiny-chat}}
    transformers: {{max_batch_size: 4}}
  data: {{type: list, items: {items}}}
  inference: {{temperature: 0, max_tokens: 16, ignore_eos: true}}
  output: {{formats: [json, parquet], artifacts: [responses.json, responses.parquet]}}
"""


def chat(items: list[str], *, reuse: bool = False) -> str:
    return CHAT.format(reuse=str(reuse).lower(), items=json.dumps(items))


def questions(count: int = ROWS, distinct: int = DISTINCT) -> list[str]:
    """Every question past the first `distinct` was asked before."""
    return [f"What is {index % distinct} plus 4?" for index in range(count)]


@pytest.fixture(scope="module")
def place(
    session_home: Path,
    session_instance: dg.DagsterInstance,
    tmp_path_factory: pytest.TempPathFactory,
) -> Place:
    place = Place(tmp_path_factory.mktemp("reuse"), session_home)
    place.environment |= {"OMP_NUM_THREADS": "1", "MLOC_FLUSH_ROWS": "8"}
    return place


def rows_of(place: Place, *arguments: str) -> list[dict[str, Any]]:
    """Runs a task to its end and returns its rows."""
    done = place.run("run", *arguments, "--quiet")
    assert done.returncode == 0, done.stderr
    return pq.read_table(Path(done.stdout.strip()) / "responses.parquet").to_pylist()


def answers(rows: Iterable[dict[str, Any]]) -> list[tuple[int, str, str]]:
    return [(row["index"], row["prompt"], row["output"]) for row in rows]


def test_a_kill_changes_no_answer_and_no_duplicates_answer(place: Place) -> None:
    path = place.write("sums.yaml", chat(questions()))
    undisturbed = rows_of(place, path)
    assert [row["prompt"] for row in undisturbed] == questions()
    assert [row["reused"] for row in undisturbed].count("task") == ROWS - DISTINCT
    assert len({row["output"] for row in undisturbed}) > 1

    before = place.tasks()
    process = place.start("run", path)
    task_id = started_task(place, process, before)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    kept = {part: part.read_bytes() for part in place.parts(task_id)}
    finished = indexes(kept.values())
    assert 0 < len(finished) < ROWS

    resumed = rows_of(place, "--resume", task_id)
    assert answers(resumed) == answers(undisturbed)
    assert all(part.read_bytes() == content for part, content in kept.items())
    added = [part.read_bytes() for part in place.parts(task_id) if part not in kept]
    assert sorted([*finished, *indexes(added)]) == list(range(ROWS))  # none was computed twice


def test_another_task_takes_its_answers_from_the_cache(place: Place) -> None:
    asked = questions(40, 30)
    reusing = place.write("reusing.yaml", chat(asked, reuse=True))
    first = rows_of(place, reusing)
    assert "cache" not in {row["reused"] for row in first}

    second = rows_of(place, reusing)
    assert {row["reused"] for row in second} == {"cache"}
    assert answers(second) == answers(first)

    longer = rows_of(place, reusing, "--set", "spec.inference.max_tokens=17")
    assert "cache" not in {row["reused"] for row in longer}
    assert {row["completion_tokens"] for row in longer} == {17}
