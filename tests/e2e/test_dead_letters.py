"""Tasks that fail for good, are retried and cancelled: real workers, the command line as it is."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import redis
import yaml
from dagster import DagsterRunStatus

from mloc_dagster.cli import entry
from mloc_dagster.library import library_dir
from mloc_dagster.results import Folder, OutputRow, list_parts, open_store, read_rows
from mloc_dagster.sensors import publish_since
from mloc_dagster.services import fleet_instance
from mloc_dagster.settings import settings
from tests.e2e.fleet_processes import RUNS, FleetProcesses
from tests.e2e.stack import until
from tests.redis_server import RedisServer

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

ROWS = 8
TEMPLATES = {
    "plain": "echo: {output_tokens: 1}",
    "obstructed": "retries: {max: 1, delay_s: 0}",
    "hopeless": "echo: {fail_rate: 1}\nretries: {max: 0}\nparallel: {max_shards: 1}",
    "forgiving": "echo: {poison: [3], error_budget: 0.5}",
    "strict": "echo: {poison: [3], error_budget: 0}",
    "by_name": "partitions: {type: static, partition_keys: [x, y]}\n"
    'data: {type: list, items: ["about ${partition_key}"]}',
    "slow": "echo: {delay_s: 1}\nparallel: {max_shards: 4}",
}
STAGES = """\
stages:
  - {name: draft, spec: {echo: {poison: [0], error_budget: 0}}}
  - {name: refine, spec: {data: {type: list, items: ["${draft.result.items[1].output}"]}}}
"""


def template(name: str, spec: str) -> str:
    given = {
        "taskType": "echo",
        "data": {"type": "list", "items": [f"row {index}" for index in range(ROWS)]},
        "parallel": {"max_shards": 2},
        **yaml.safe_load(spec),
    }
    document = {"apiVersion": "mloc/v1", "kind": "EchoTask", "metadata": {"name": name}}
    return yaml.safe_dump({**document, "spec": given})


class Fleet:
    """The fleet as a person at a terminal has it, and Dagster's daemon reduced to its queue."""

    def __init__(self, processes: FleetProcesses, capsys: pytest.CaptureFixture[str]) -> None:
        self.instance = processes.instance
        self._capsys = capsys
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None

    def mloc(self, *arguments: str, code: int = 0) -> str:
        """Runs a command; returns what it prints, on stderr if it fails."""
        self._capsys.readouterr()
        found = entry.run(arguments)
        out, err = self._capsys.readouterr()
        assert found == code, err
        return err if code else out

    def json(self, *arguments: str) -> Any:
        return json.loads(self.mloc(*arguments, "--json"))

    def launch(self, name: str, *options: str) -> tuple[str, list[str]]:
        """Queues a template; returns the ids of its run and its tasks."""
        lines = [line.split() for line in self.mloc("launch", name, *options).splitlines()]
        (run_id,) = (each[1] for each in lines if each[0] == "run")
        return run_id, [each[1] for each in lines if each[0] == "task"]

    def show(self, task_id: str) -> dict[str, Any]:
        (task,) = self.json("show", task_id)["tasks"]
        return task

    def open_queue(self) -> None:
        """From now on queued runs are launched."""
        self._thread = threading.Thread(target=self._dequeue)
        self._thread.start()

    def _dequeue(self) -> None:
        while not self._closing.wait(0.1):
            for run in self.instance.get_runs(dg.RunsFilter(statuses=[DagsterRunStatus.QUEUED])):
                self.instance.launch_run(run.run_id, workspace=None)  # type: ignore[arg-type]

    def close(self) -> None:
        self._closing.set()
        if self._thread is not None:
            self._thread.join()

    def await_end(self, run_id: str) -> None:
        def ended() -> bool:
            run = self.instance.get_run_by_id(run_id)
            return run is not None and run.is_finished

        until(ended, f"run {run_id} ends")
        self.tick()

    def tick(self) -> None:
        """Lets the sensor look at the event log, to its end: other tests share the log."""
        with redis.Redis.from_url(settings().redis_url or "") as client:
            before, (_, cursor) = -1, publish_since(self.instance, client, None)
            while cursor.after != before:
                before, (_, cursor) = cursor.after, publish_since(self.instance, client, cursor)

    def letters(self) -> dict[str, dict[str, Any]]:
        return {each["task_id"]: each for each in self.json("dead-letters")}


@pytest.fixture(scope="module")
def environment(
    session_home: Path, redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("dead_letters")
    dagster_home, library = folder / "dagster", folder / "templates"
    dagster_home.mkdir()
    library.mkdir()
    (dagster_home / "dagster.yaml").write_text(yaml.safe_dump(fleet_instance()))
    for name, spec in {**TEMPLATES, "staged": STAGES}.items():
        (library / f"{name}.yaml").write_text(template(name, spec))
    return {
        "MLOC_HOME": str(session_home),
        "DAGSTER_HOME": str(dagster_home),
        "MLOC_REDIS_URL": redis_server.url,
        "MLOC_RESULTS_URL": str(folder / "results"),
        "MLOC_TEMPLATES_DIR": str(library),
        "MLOC_LEASE_TTL_S": "2",
        "MLOC_FLUSH_INTERVAL_S": "0.2",
    }


@pytest.fixture(scope="module")
def processes(
    environment: dict[str, str], session_instance: dg.DagsterInstance
) -> Iterator[FleetProcesses]:
    """A run worker and a shard worker."""
    with pytest.MonkeyPatch.context() as patch:
        for name, text in environment.items():
            patch.setenv(name, text)
        settings.cache_clear()
        with redis.Redis.from_url(environment["MLOC_REDIS_URL"]) as client:
            client.flushall()
        running = FleetProcesses(Path(environment["DAGSTER_HOME"]), environment)
        try:
            running.start("runs", RUNS)
            running.start("shards")
            running.await_workers("runs", "shards")
            yield running
        finally:
            running.close()
    settings.cache_clear()


@pytest.fixture
def fleet(
    processes: FleetProcesses,
    environment: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Iterator[Fleet]:
    for name, text in {**environment, "COLUMNS": "250"}.items():
        monkeypatch.setenv(name, text)
    settings.cache_clear()
    fleet = Fleet(processes, capsys)
    yield fleet
    fleet.close()


def rows_of(task_id: str) -> list[OutputRow]:
    return list(read_rows(open_store().task(task_id)))


def computed(folder: Folder) -> Counter[int]:
    """How often each row was computed."""
    names = [each.name for each in list_parts(folder)]
    return Counter(
        json.loads(line)["index"] for name in names for line in folder.read_bytes(name).splitlines()
    )


def test_a_task_that_failed_for_good_is_listed_and_retried(fleet: Fleet) -> None:
    run_id, (task_id,) = fleet.launch("obstructed")
    folder = open_store().task(task_id)
    folder.write_bytes("shards/0001", b"where a folder should be")
    assert fleet.show(task_id)["state"] == "PENDING"
    fleet.open_queue()
    fleet.await_end(run_id)

    letter = fleet.letters()[task_id]
    assert letter["run_id"] == run_id
    assert letter["template"] == "obstructed"
    assert letter["failed_shards"] == [1]
    assert letter["attempts"] == 2
    assert "attempt 2 of 2 failed" in letter["reason"]
    assert "shards/0001" in letter["reason"]
    assert (letter["rows"], letter["rows_finished"], letter["rows_missing"]) == (8, 4, 4)
    assert "failed: NotADirectoryError" in letter["logs"]["1"][-1]
    shown = fleet.mloc("dead-letters", "-v")
    assert task_id in shown
    assert "failed: NotADirectoryError" in shown
    status = fleet.show(task_id)
    assert status["state"] == "DEAD"
    assert status["shards"] == {"queued": 0, "running": 0, "done": 1, "failed": 1}
    assert status["retries"] == 1
    assert task_id in [each["task_id"] for each in fleet.json("list", "--status", "dead")]

    folder.delete("shards/0001")
    said = fleet.mloc("retry", task_id, "--wait")
    assert f"task {task_id}" in said
    assert task_id not in fleet.letters()
    done = fleet.show(run_id)
    assert (done["task_id"], done["state"], done["rows_finished"]) == (task_id, "DONE", 8)
    assert done["runs"] == 2
    assert done["run_id"] != run_id
    assert computed(folder) == Counter(range(ROWS))
    assert [row.output for row in rows_of(task_id)] == [f"row {index}" for index in range(ROWS)]
    assert "is done" in fleet.mloc("retry", task_id, code=2)


def test_a_partition_of_a_library_template_is_launched_and_recorded(fleet: Fleet) -> None:
    assert "say which with --partition KEY" in fleet.mloc("launch", "by_name", code=2)
    assert "no partition 'z'; known: 'x', 'y'" in fleet.mloc(
        "launch", "by_name", "--partition", "z", code=2
    )
    changed = "spec.partitions.partition_keys=[z]"
    said = fleet.mloc("launch", "by_name", "--partition", "z", "--set", changed, code=2)
    assert "--set may not change the template's partitions" in said

    run_id, (task_id,) = fleet.launch("by_name", "--partition", "y")
    fleet.open_queue()
    fleet.await_end(run_id)
    assert [row.output for row in rows_of(task_id)] == ["about y"]
    asset = dg.AssetKey(["by_name", "responses"])
    assert fleet.instance.get_materialized_partitions(asset) == {"y"}


def test_what_an_attempt_finished_is_never_computed_again(fleet: Fleet) -> None:
    fleet.open_queue()
    run_id, (task_id,) = fleet.launch("hopeless")
    fleet.await_end(run_id)
    assert fleet.letters()[task_id]["rows_missing"] == 4
    fleet.mloc("retry", run_id, "--wait", code=1)
    fleet.tick()
    letter = fleet.letters()[task_id]
    assert letter["rows_missing"] == 2
    assert letter["run_id"] != run_id
    assert computed(open_store().task(task_id)) == Counter(range(6))


def test_a_budget_decides_whether_rows_may_fail(fleet: Fleet) -> None:
    fleet.open_queue()
    forgiven, (within,) = fleet.launch("forgiving")
    refused, (beyond,) = fleet.launch("strict")
    fleet.await_end(forgiven)
    fleet.await_end(refused)
    done = fleet.show(within)
    assert (done["state"], done["rows_finished"], done["errors"]) == ("DONE", 8, 1)
    assert within not in fleet.letters()

    letter = fleet.letters()[beyond]
    reason = (
        "1 of 8 rows ended with an error, and error_budget allows 0; the first, row 3: poisoned "
        "row: the template lists it under echo.poison. Compute them again "
        f"(`mloc retry --failed-rows {beyond}`), or run the template with a larger error_budget"
    )
    assert (letter["rows_missing"], letter["errors"]) == (0, 1)
    assert letter["reason"] == reason
    assert reason in fleet.mloc("dead-letters")
    shown = fleet.mloc("show", beyond)
    assert "rows      8 of 8, 1 error\n" in shown
    assert f"error     {reason}\n" in shown
    assert fleet.show(beyond)["errors"] == 1
    folder = open_store().task(beyond)
    assert computed(folder) == Counter(range(ROWS))
    fleet.mloc("retry", beyond, "--wait", code=1)
    assert computed(folder) == Counter(range(ROWS))
    fleet.mloc("retry", beyond, "--failed-rows", "--wait", code=1)
    assert computed(folder) == Counter([*range(ROWS), 3])


def test_a_task_behind_a_dead_one_is_retried_with_it(fleet: Fleet) -> None:
    fleet.open_queue()
    run_id, (draft, refine) = fleet.launch("staged")
    fleet.await_end(run_id)
    letters = fleet.letters()
    assert "not begun" in letters[refine]["reason"]
    assert letters[refine]["rows"] is None
    assert letters[draft]["rows_missing"] == 0
    assert fleet.show(refine)["state"] == "DEAD"
    said = fleet.mloc("retry", refine)
    assert {draft, refine} <= set(said.split())
    again = fleet.letters()  # until the retry has failed, too
    assert all(again[each]["run_id"] != run_id for each in (draft, refine) if each in again)
    retried = fleet.show(refine)["run_id"]
    fleet.await_end(retried)
    assert fleet.letters()[draft]["run_id"] == retried


def test_a_running_task_is_cancelled_and_gone_on_with(fleet: Fleet) -> None:
    fleet.open_queue()
    _, (task_id,) = fleet.launch("slow")
    running = until(lambda: _with_rows(fleet, task_id), "the first rows are there")
    assert running["state"] == "RUNNING"
    assert set(running["workers"].values()) == {"shards"}
    assert f"cancelled {task_id}" in fleet.mloc("cancel", task_id, "--wait")
    status = fleet.show(task_id)
    assert status["state"] == "CANCELLED"
    assert 0 < status["rows_finished"] < ROWS
    fleet.tick()
    assert task_id not in fleet.letters()
    assert "ended already (cancelled)" in fleet.mloc("cancel", task_id, code=2)

    finished = computed(open_store().task(task_id))
    fleet.mloc("retry", task_id, "--wait")
    assert fleet.show(task_id)["state"] == "DONE"
    assert computed(open_store().task(task_id)) == Counter(range(ROWS))
    assert finished.keys() < set(range(ROWS))


def _with_rows(fleet: Fleet, task_id: str) -> dict[str, Any] | None:
    status = fleet.show(task_id)
    return status if status["rows_finished"] else None


def test_a_queued_task_is_cancelled(fleet: Fleet) -> None:
    run_id, (task_id,) = fleet.launch("plain", "--set", "spec.echo.output_tokens=3")
    fleet.mloc("cancel", run_id, "--wait")
    assert fleet.show(task_id)["state"] == "CANCELLED"
    fleet.open_queue()
    fleet.mloc("retry", task_id, "--wait")
    assert fleet.show(task_id)["state"] == "DONE"
    # What `launch --set` changed is part of the task, also when it is retried.
    assert {row.completion_tokens for row in rows_of(task_id)} == {3}


def test_what_cannot_be_done_is_one_message(fleet: Fleet, tmp_path: Path) -> None:
    run_id, (task_id,) = fleet.launch("plain")
    for command in ("show", "cancel", "retry"):
        said = fleet.mloc(command, f"{task_id[:-1]}x", code=2)
        assert f"did you mean '{task_id}'?" in said
        assert said.count("\n") == 1
    assert "is still at it" in fleet.mloc("retry", task_id, code=2)
    fleet.mloc("cancel", run_id)

    path = tmp_path / "own.yaml"
    path.write_text(template("own", "{}"))
    said = fleet.mloc("launch", str(path), code=2)
    assert "HTTP API" in said
    assert f"mloc run {path}" in said
    assert "resources" in fleet.mloc(
        "launch", "plain", "--set", "spec.resources.hardware.cpu=2", code=2
    )
    assert "did you mean 'DONE'?" in fleet.mloc("list", "--status", "DONNE", code=2)


def test_a_task_whose_template_is_gone_is_not_retried(fleet: Fleet) -> None:
    path = library_dir() / "gone.yaml"
    path.write_text(template("gone", "{}"))
    run_id, (task_id,) = fleet.launch("gone")
    fleet.mloc("cancel", run_id)
    path.unlink()
    assert "'gone' is in the library no more" in fleet.mloc("retry", task_id, code=2)
