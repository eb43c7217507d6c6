"""A run of small tasks, in this process: each has what it would have had alone."""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import dagster as dg
import msgspec
import pyarrow.parquet as pq
import pytest
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.testclient import TestClient

from mloc_dagster.assets import JOB, batch_definitions, batch_run_config
from mloc_dagster.compile import compile_mapping
from mloc_dagster.errors import TerminalError
from mloc_dagster.events import TaskEvent, TaskEventType, listening
from mloc_dagster.executors import start_batch
from mloc_dagster.local_run import run_template
from mloc_dagster.ops import batch as batch_ops
from mloc_dagster.results import (
    Batch,
    Folder,
    Member,
    MemberOutcome,
    batch_folder,
    mark_cancelled,
    open_store,
    read_manifest,
    read_outcome,
    read_record,
    read_summary,
    verify_manifest,
    write_batch,
)
from mloc_dagster.schema import InferenceSpec
from mloc_dagster.viewer import VIEWER_PATH, create_viewer


def document(*items: str, name: str = "small", **spec: Any) -> dict[str, Any]:
    data = {"type": "list", "items": list(items)}
    return {
        "apiVersion": "mloc/v1",
        "kind": "EchoTask",
        "metadata": {"name": name},
        "spec": {"taskType": "echo", "data": data, **spec},
    }


def batch_of(*documents: dict[str, Any]) -> Batch:
    members: list[Member] = []
    first = 0
    for each in documents:
        rows = len(each["spec"]["data"]["items"])
        member = Member(
            task_id=str(uuid.uuid4()),
            document=each,
            submitted_at=datetime.now(UTC),
            first=first,
            rows=rows,
        )
        members.append(member)
        first += rows
    batch = Batch(batch_id=str(uuid.uuid4()), members=tuple(members))
    write_batch(open_store(), batch)
    return batch


def run(batch: Batch, *, fails: bool = False) -> dg.ExecuteInProcessResult:
    result = (
        batch_definitions()
        .resolve_job_def(JOB)
        .execute_in_process(
            run_id=batch.batch_id,
            raise_on_error=not fails,
            run_config={
                "ops": batch_run_config(batch.batch_id)["ops"],
                "loggers": {"console": {"config": {"log_level": "CRITICAL"}}},
            },
        )
    )
    assert result.success is not fails
    return result


def outcomes(batch: Batch) -> tuple[MemberOutcome, ...]:
    found = read_outcome(open_store(), batch.batch_id)
    assert found is not None
    return found.tasks


def folder_of(batch: Batch, number: int) -> Folder:
    return open_store().task(batch.members[number].task_id)


def items(folder: Folder) -> list[dict[str, Any]]:
    return json.loads(folder.read_bytes("responses.json"))["result"]["items"]


def rows_of(folder: Folder) -> list[dict[str, Any]]:
    with folder.open("responses.parquet") as file:
        return pq.read_table(file).to_pylist()


# Alone, small rows get a shard each; among others they lie in one.
VARYING = ("task_id", "worker", "latency_s", "engine_s", "energy_j", "gpu_s", "shard")


def without_times(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: cell for name, cell in row.items() if name not in VARYING} for row in rows]


def listed(folder: Folder) -> set[str]:
    """Returns the files of a manifest but for logs: a batch has those of its shards itself."""
    paths = (each.path for each in read_manifest(folder).entries if each.type == "file")
    return {each for each in paths if not each.startswith("logs/")}


def usage_of(folder: Folder) -> dict[str, Any]:
    usage = json.loads(folder.read_bytes("responses.json"))["result"]["usage"]
    return {name: each for name, each in usage.items() if name != "latency_sec"}


def test_the_page_of_a_batch_leads_to_a_page_of_each_task(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLOC_API_URL", "http://127.0.0.1:8000")
    batch = batch_of(document("one"), document("two"))
    (link,) = (
        event.step_output_data.metadata["viewer"].value
        for event in run(batch).all_events
        if event.is_successful_output and "viewer" in event.step_output_data.metadata
    )
    viewer = TestClient(Starlette(routes=[Mount(VIEWER_PATH, create_viewer(open_store))]))
    assert link == f"http://127.0.0.1:8000/ui/?batch={batch.batch_id}"
    lines = viewer.get("/ui/data/tasks", params={"batch": batch.batch_id}).json()
    assert [each["task_id"] for each in lines] == [each.task_id for each in batch.members]
    assert {each["state"] for each in lines} == {"done"}
    assert all(viewer.get(f"/ui/tasks/{each['task_id']}").status_code == 200 for each in lines)
    assert viewer.get("/ui/data/tasks", params={"batch": "../x"}).status_code == 404


def test_each_member_is_scored_by_its_own_evaluation_and_gate() -> None:
    def metrics(*words: str) -> list[dict[str, str]]:
        return [{"type": "regex", "name": each, "pattern": each} for each in words]

    batch = batch_of(
        document("one", "two", evaluation={"metrics": metrics("one", "two")}),
        document("one", "two", evaluation={"metrics": metrics("one"), "gate": "one > 0.5"}),
        document("behind"),
    )
    run(batch)
    passed, refused, behind = outcomes(batch)
    assert (passed.state, behind.state) == ("DONE", "DONE")
    scores = read_summary(folder_of(batch, 0)).scores
    assert scores is not None
    assert scores.metrics == {"one": 0.5, "two": 0.5}
    assert [row["one"] for row in rows_of(folder_of(batch, 0))] == [1, 0]
    assert refused.state == "DEAD"
    assert refused.error == "the result did not pass its gate: one 0.5 > 0.5: failed"


def test_a_member_has_what_it_would_have_had_alone() -> None:
    asked = document("one", "two", "three", output={"formats": ["json", "parquet", "jsonl", "csv"]})
    batch = batch_of(document("before"), asked, document("behind"))
    run(batch)
    with dg.instance_for_test() as instance:
        alone = run_template(compile_mapping(asked), instance)
    assert alone.succeeded
    mine, other = folder_of(batch, 1), open_store().task(alone.workflow_id)
    assert items(mine) == items(other)
    assert without_times(rows_of(mine)) == without_times(rows_of(other))
    assert [(row["task_id"], row["shard"], row["index"]) for row in rows_of(mine)] == [
        (batch.members[1].task_id, 0, number) for number in range(3)
    ]
    assert listed(mine) == listed(other)
    assert verify_manifest(mine) == ()
    assert usage_of(mine) == usage_of(other)
    records = [read_record(mine), read_record(other)]
    assert records[0].spec == records[1].spec
    assert records[0].template == records[1].template
    assert records[0].submitted_at == batch.members[1].submitted_at


def test_a_members_schema_keeps_the_order_of_its_properties() -> None:
    schema = {"type": "object", "properties": {"reason": {"type": "string"}, "answer": {}}}
    asked = document(
        "one",
        taskType="inference",
        model={"source": {"type": "builtin", "identifier": "tiny-chat"}},
        inference={"structured_outputs": {"json": schema}},
    )
    opened, _ = start_batch(batch_of({**asked, "kind": "InferenceTask"}), str(uuid.uuid4()))
    assert isinstance(opened.spec, InferenceSpec)
    form = opened.spec.inference.structured_outputs
    assert form is not None
    assert json.dumps(form.json_schema) == json.dumps(schema)


def test_one_that_fails_harms_no_neighbour(monkeypatch: pytest.MonkeyPatch) -> None:
    lenient = document("good", "bad", echo={"error_budget": 0.5})
    batch = batch_of(document("a"), document("good", "bad", echo={"error_budget": 0}), lenient)
    _fail_rows(monkeypatch, "bad")
    run(batch)
    first, strict, allowed = outcomes(batch)
    assert (first.state, first.rows, first.errors) == ("DONE", 1, 0)
    assert (strict.state, strict.rows, strict.errors) == ("DEAD", 2, 1)
    assert strict.error.startswith(
        "1 of 2 rows ended with an error, and error_budget allows 0; the first, row 1: no answer. "
        f"Compute them again (`mloc retry --failed-rows {strict.task_id}`)"
    )
    assert (allowed.state, allowed.errors) == ("DONE", 1)
    assert not folder_of(batch, 1).exists("manifest.json")
    assert [each.get("error") for each in items(folder_of(batch, 2))] == [None, "no answer"]


def _fail_rows(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """Makes rows of one prompt fail, where the batch's rows are read back."""
    real = batch_ops.read_rows

    def failing(folder: Folder) -> Any:
        for row in real(folder):
            if row.prompt == text:
                yield msgspec.structs.replace(
                    row, output="", finish_reason="error", error="no answer"
                )
            else:
                yield row

    monkeypatch.setattr(batch_ops, "read_rows", failing)


def test_who_is_cancelled_meanwhile_gets_nothing() -> None:
    batch = batch_of(document("a"), document("b"))
    mark_cancelled(open_store(), batch.batch_id, batch.members[0].task_id)
    run(batch)
    assert [each.state for each in outcomes(batch)] == ["CANCELLED", "DONE"]
    assert not folder_of(batch, 0).exists("responses.json")
    assert [each["output"] for each in items(folder_of(batch, 1))] == ["b"]


def test_a_members_time_ends_with_its_rows() -> None:
    """What writing down the others takes is none of it."""
    batch = batch_of(*(document(f"row {number}") for number in range(5)))
    run(batch)
    summaries = [read_summary(folder_of(batch, number)) for number in range(5)]
    assert len({(each.started_at, each.finished_at) for each in summaries}) == 1
    assert len({each.usage.latency_sec for each in summaries}) == 1


def test_what_was_handed_out_is_not_written_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that fell silent may still be at it while another has finished its run."""
    batch = batch_of(document("a"), document("b"))
    kept: list[Batch] = []
    monkeypatch.setattr(batch_ops, "delete_rows", lambda _, given: kept.append(given))
    run(batch)
    before = _written(batch)
    batch_folder(open_store(), batch.batch_id).delete("outcome.json")
    run(batch)
    assert _written(batch) == before
    assert [each.state for each in outcomes(batch)] == ["DONE", "DONE"]


def _written(batch: Batch) -> dict[str, tuple[bytes, int]]:
    found: dict[str, tuple[bytes, int]] = {}
    for each in batch.members:
        folder = open_store().task(each.task_id)
        for name in folder.list(recursive=True):
            path = Path(folder.url) / name
            found[f"{each.task_id}/{name}"] = (path.read_bytes(), path.stat().st_ino)
    return found


def test_a_hand_out_that_was_interrupted_starts_over() -> None:
    batch = batch_of(document("a"), document("b"))
    folder = folder_of(batch, 0)
    folder.write_bytes("responses.json", b"half of")
    folder.write_bytes("shards/0000/part-0.jsonl", b"")
    run(batch)
    assert [each["output"] for each in items(folder)] == ["a"]
    assert verify_manifest(folder) == ()


def test_a_delivery_that_fails_fails_its_task_alone() -> None:
    """Something that is no folder lies where one's results should go."""
    open_store().folder("taken").write_bytes("file", b"")
    wanted = {
        "destination": {"type": "local", "path": "taken/file"},
        "artifacts": ["responses.json"],
    }
    batch = batch_of(document("a", output=wanted), document("b"))
    run(batch)
    bad, good = outcomes(batch)
    assert (bad.state, good.state) == ("DEAD", "DONE")
    assert "taken/file" in bad.error


def test_events_are_those_of_the_members() -> None:
    heard: list[TaskEvent] = []
    batch = batch_of(document("a", name="first"), document("b", "c", name="second"))
    with listening(heard.append):
        run(batch)
    ids = [each.task_id for each in batch.members]
    assert {each.task_id for each in heard} == set(ids)
    for number, task_id in enumerate(ids):
        own = [each for each in heard if each.task_id == task_id]
        assert [each.type for each in own] == [
            TaskEventType.TASK_STARTED,
            TaskEventType.TASK_SUCCEEDED,
        ]
        alone = compile_mapping(batch.members[number].document).tasks[0].task.name
        assert {each.node for each in own} == {alone}


def test_a_member_that_is_late_says_so_itself() -> None:
    heard: list[TaskEvent] = []
    batch = batch_of(document("a", slo={"seconds": 0.001}), document("b", slo={"seconds": 600}))
    with listening(heard.append):
        run(batch)
    (missed,) = [each for each in heard if each.type is TaskEventType.TASK_SLO_MISSED]
    assert missed.task_id == batch.members[0].task_id
    assert missed.payload.slo is not None
    assert missed.payload.slo.late_s > 0


def test_the_store_names_the_members_and_nobody_else() -> None:
    batch = batch_of(document("a"), document("b"))
    run(batch)
    assert set(open_store().task_ids()) == {each.task_id for each in batch.members}


def test_the_run_says_what_it_did() -> None:
    batch = batch_of(document("a"), document("b", "c"))
    (seen,) = run(batch).asset_materializations_for_node(f"{JOB}__batch.hand_out") or [None]
    assert seen is not None
    values = {name: each.value for name, each in seen.metadata.items()}
    assert (values["tasks"], values["done"], values["dagster/row_count"]) == (2, 2, 3)
    assert values["task_ids"] == [each.task_id for each in batch.members]


def test_rows_that_are_there_outlive_their_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = batch_of(document("a"), document("b", "c"))

    def die(*_: object) -> None:
        raise TerminalError("the worker is gone")

    with monkeypatch.context() as patch:
        patch.setattr(batch_ops, "_give_all", die)
        run(batch, fails=True)
    assert read_outcome(open_store(), batch.batch_id) is None
    reports = run(batch).output_for_node(f"{JOB}__batch.run_shard").values()
    assert [(each.rows_computed, each.rows_resumed) for each in reports] == [(0, 3)]
    assert [each.state for each in outcomes(batch)] == ["DONE", "DONE"]
    assert [each["output"] for each in items(folder_of(batch, 1))] == ["b", "c"]
