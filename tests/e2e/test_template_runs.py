"""Templates run as Dagster jobs on a real database, looked at as a Dagster user would."""

from __future__ import annotations

import csv
import io
import json
import shutil
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from mloc_dagster.compile import CompiledTemplate, compile_mapping
from mloc_dagster.definitions import build_definitions, runnable_library
from mloc_dagster.local_run import RunOutcome, run_template, start_over
from mloc_dagster.models import builtin_model_path
from mloc_dagster.results import (
    UPSTREAM_FAULT,
    OutputRow,
    ShardWriter,
    list_parts,
    open_store,
    read_plan,
    read_rows,
    verify_manifest,
)
from mloc_dagster.settings import settings

pytestmark = pytest.mark.e2e


def template(name: str, spec: str) -> CompiledTemplate:
    document = {"apiVersion": "mloc/v1", "kind": "EchoTask", "metadata": {"name": name}}
    return compile_mapping({**document, "spec": yaml.safe_load(spec)})


def rows_of(outcome: RunOutcome, node: str) -> list[OutputRow]:
    (task,) = [each for each in outcome.tasks if each.node == node]
    return list(read_rows(open_store().task(task.task_id)))


def checks_of(instance: dg.DagsterInstance, outcome: RunOutcome) -> dict[str, bool]:
    """Returns which checks of a run passed."""
    entries = instance.all_logs(outcome.run_id, of_type=dg.DagsterEventType.ASSET_CHECK_EVALUATION)
    return {
        each.check_name: each.passed
        for entry in entries
        if entry.dagster_event is not None
        and (each := entry.dagster_event.asset_check_evaluation_data)
    }


DIAMOND = """
taskType: echo
parallel: {max_shards: 2}
graph:
  nodes:
    - name: source
      spec: {data: {type: list, items: [a, b, c]}}
    - name: left
      dependsOn: [source]
      spec: {data: {type: upstream, node: source, text: "left {output}"}}
    - name: right
      dependsOn: [source]
      spec: {data: {type: upstream, node: source, text: "right {output}"}}
    - name: both
      dependsOn: [left, right]
      spec:
        data:
          type: graph_template
          template:
            text: "{l} and {r}; first of all {first}"
            columns:
              - {label: l, expr: "left.result.items[*].output"}
              - {label: r, expr: "right.result.items[*].output"}
              - {label: first, node: left, path: "result.items[0].output"}
"""


def test_a_diamond_hands_rows_on_and_shows_them_as_lineage(instance: dg.DagsterInstance) -> None:
    compiled = template("diamond", DIAMOND)
    outcome = run_template(compiled, instance)
    assert outcome.succeeded, outcome.failures
    assert [row.output for row in rows_of(outcome, "both")] == [
        f"left {each} and right {each}; first of all left a" for each in "abc"
    ]
    graph = build_definitions([compiled]).resolve_asset_graph()

    def parents(name: str) -> set[str]:
        key = dg.AssetKey(["diamond", name])
        return {each.to_user_string() for each in graph.get(key).parent_keys}

    assert parents("both_responses") == {"diamond/left_responses", "diamond/right_responses"}
    assert parents("left_responses") == {"diamond/source_responses"}
    event = instance.get_latest_materialization_event(dg.AssetKey(["diamond", "both_responses"]))
    assert event is not None
    assert event.asset_materialization is not None
    lineage = event.asset_materialization.metadata["dagster/column_lineage"]
    assert isinstance(lineage, dg.TableColumnLineageMetadataValue)
    read = lineage.lineage.deps_by_column["output"]
    assert {"/".join(each.asset_key.path) for each in read} == {
        "diamond/left_responses",
        "diamond/right_responses",
    }


QUESTIONS = """
taskType: echo
parallel: {max_shards: 2}
output: {formats: [json, parquet, jsonl, csv]}
stages:
  - name: ask
    spec:
      data:
        type: dataset
        url: %s
        messages: [{role: system, content: "Level {level}"}, {role: user, content: "{question}?"}]
        keep: [answer, level]
        id_column: key
  - name: judge
    spec:
      data: {type: upstream, node: ask, text: "{output} should be {columns.answer}"}
"""


def test_rows_bring_their_columns_along_into_every_file_and_stage(
    instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    questions = [("a", "one", 1, "I"), ("b", "two", 2, None), ("c", "three", 3, 'say "III", twice')]
    names = ("key", "question", "level", "answer")
    table = pa.table(dict(zip(names, zip(*questions, strict=True), strict=True)))
    pq.write_table(table, tmp_path / "q.parquet")
    outcome = run_template(template("columns", QUESTIONS % (tmp_path / "q.parquet")), instance)
    assert outcome.succeeded, outcome.failures
    brought = [{"answer": a, "level": n, "id": key} for key, _, n, a in questions]
    for task, output in zip(
        outcome.tasks, ("{question}?", "{question}? should be {answer}"), strict=True
    ):
        outputs = [
            output.format(question=q, answer="" if a is None else a) for _, q, _, a in questions
        ]
        folder = open_store().task(task.task_id)
        items = json.loads(folder.read_bytes("responses.json"))["result"]["items"]
        assert [each["output"] for each in items] == outputs
        assert [each["columns"] for each in items] == brought
        shown = pq.read_table(tmp_path / "results" / task.task_id / "responses.parquet")
        assert shown.select(["answer", "level", "id"]).to_pylist() == brought
        assert shown.schema.field("level").type == pa.int64()
        lines = folder.read_bytes("responses.jsonl").decode().splitlines()
        assert [{k: json.loads(line)[k] for k in brought[0]} for line in lines] == brought
        rows = csv.DictReader(io.StringIO(folder.read_bytes("responses.csv").decode(), newline=""))
        assert [(row["id"], row["answer"], row["level"]) for row in rows] == [
            (key, a or "", str(n)) for key, _, n, a in questions
        ]


SCORED = """
taskType: echo
parallel: {max_shards: 2}
output: {formats: [json, parquet]}
stages:
  - name: ask
    spec:
      data: {type: dataset, url: %s, prompt: "{question} is {guess}"}
      evaluation: {reference: answer, metrics: [numeric, f1], gate: numeric >= %s}
  - name: wrong
    spec:
      data: {type: upstream, node: ask, where: numeric < 1, text: "{columns.answer}"}
      evaluation: {reference: answer, metrics: [{type: exact_match, name: right}]}
"""


def scored(instance: dg.DagsterInstance, folder: Path, least: float) -> RunOutcome:
    lines = [
        {"question": f"{n} + {n}", "guess": 2 * n + (n == 2), "answer": f"#### {2 * n}"}
        for n in range(4)
    ]
    (folder / "q.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return run_template(template("scored", SCORED % (folder / "q.jsonl", least)), instance)


def test_answers_are_scored_and_a_stage_takes_the_wrong_ones(
    instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    outcome = scored(instance, tmp_path, 0.7)
    assert outcome.succeeded, outcome.failures
    ask, wrong = outcome.tasks
    assert ask.summary is not None
    assert ask.summary.scores is not None
    assert ask.summary.scores.metrics["numeric"] == 0.75
    table = pq.read_table(tmp_path / "results" / wrong.task_id / "responses.parquet")
    assert table.select(["input_index", "guess", "numeric", "right"]).to_pylist() == [
        {"input_index": 2, "guess": 5, "numeric": 0.0, "right": 1.0}
    ]
    entry = instance.get_latest_materialization_event(dg.AssetKey(["scored", "ask_responses"]))
    assert entry is not None
    assert entry.asset_materialization is not None
    assert entry.asset_materialization.metadata["evaluation/numeric"].value == 0.75
    scores = instance.get_latest_materialization_event(dg.AssetKey(["scored", "ask_evaluation"]))
    assert scores is not None
    assert scores.asset_materialization is not None
    assert scores.asset_materialization.metadata["numeric"].value == 0.75
    assert "| 2 |" in str(scores.asset_materialization.metadata["worst_rows"].value)


def test_a_result_that_does_not_pass_its_gate_is_not_handed_on(
    instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    outcome = scored(instance, tmp_path, 0.8)
    assert not outcome.succeeded
    assert outcome.failures[0] == ("the result did not pass its gate: numeric 0.75 >= 0.8: failed")
    assert [each.node for each in outcome.tasks] == ["ask"]
    checks = checks_of(instance, outcome)
    assert [name for name, passed in checks.items() if not passed] == ["evaluation_gate"]


def test_a_shard_at_work_is_heard_of_in_the_runs_log(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLOC_RUN_NOTE_INTERVAL_S", "0")
    settings.cache_clear()
    spec = "{taskType: echo, echo: {delay_s: 0.6}, parallel: {max_shards: 1}, data: {type: list,"
    outcome = run_template(template("noted", f"{spec} items: [a, b, c, d]}}}}"), instance)
    entries = instance.all_logs(outcome.run_id)
    events = [entry.dagster_event for entry in entries if entry.dagster_event is not None]
    notes = [
        (place, event.message, event.engine_event_data.metadata)
        for place, event in enumerate(events)
        if event.is_engine_event and "rows_total" in event.engine_event_data.metadata
    ]
    assert [metadata["rows"].value for _, _, metadata in notes] == [1, 2, 3, 4]
    assert all(metadata["rows_total"].value == 4 for _, _, metadata in notes)
    assert notes[1][1].startswith("2 of 4 rows, ")
    assert notes[1][2]["eta_s"].value is not None
    shard = events[notes[0][0]].step_key
    (ended,) = [n for n, e in enumerate(events) if e.is_step_success and e.step_key == shard]
    assert notes[2][0] < ended


def test_assets_and_runs_lead_to_the_task_in_the_viewer(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLOC_API_URL", "https://mloc.example.org/")
    settings.cache_clear()
    outcome = run_template(template("linked", "{data: {type: list, items: [a]}}"), instance)
    address = f"https://mloc.example.org/ui/tasks/{outcome.tasks[0].task_id}"
    event = instance.get_latest_materialization_event(dg.AssetKey(["linked", "responses"]))
    assert event is not None
    assert event.asset_materialization is not None
    assert event.asset_materialization.metadata["viewer"] == dg.MetadataValue.url(address)
    messages = [each.user_message for each in instance.all_logs(outcome.run_id)]
    assert any(each.endswith(f"shown at {address}") for each in messages)


def test_the_asset_page_shows_what_the_task_did(instance: dg.DagsterInstance) -> None:
    items = ", ".join(["one", "two two", *"cdefghij"])
    compiled = template("asset-page", f"{{taskType: echo, data: {{type: list, items: [{items}]}}}}")
    outcome = run_template(compiled, instance)
    event = instance.get_latest_materialization_event(dg.AssetKey(["asset-page", "responses"]))
    assert event is not None
    assert event.asset_materialization is not None
    metadata = event.asset_materialization.metadata
    assert metadata["dagster/row_count"].value == 10
    assert metadata["errors"].value == 0
    assert "| tokens written | 11 |" in str(metadata["usage"].value)
    assert "| responses.parquet | " in str(metadata["files"].value)
    assert metadata["path"].value == outcome.tasks[0].folder
    assert "| 1 | two two | two two |" in str(metadata["preview"].value)
    assert str(metadata["latency"].value).startswith("![Rows by latency](data:image/svg+xml,")
    # Dagster hides longer texts behind a button.
    shown = {name: each for name, each in metadata.items() if name != "dagster/column_schema"}
    assert all(len(str(each.value)) < 1000 for each in shown.values())
    types = {each.name: each.type for each in metadata["dagster/column_schema"].schema.columns}
    assert (types["output"], types["attempt"], types["latency_s"]) == ("string", "int32", "double")
    assert event.asset_materialization.tags is not None
    assert event.asset_materialization.tags["dagster/data_version"]


def test_an_asset_has_owner_kinds_tags_and_description() -> None:
    document = {
        "apiVersion": "mloc/v1",
        "kind": "InferenceTask",
        "metadata": {"name": "described", "owner": "research", "labels": {"tier": "gold"}},
        "spec": {
            "taskType": "inference",
            "model": {"source": {"type": "builtin", "identifier": "tiny-chat"}},
            "data": {"type": "list", "items": ["x"]},
        },
    }
    graph = build_definitions([compile_mapping(document)]).resolve_asset_graph()
    node = graph.get(dg.AssetKey(["described", "responses"]))
    assert node.owners == ["team:research"]
    assert "llm" in node.kinds
    assert node.tags["mloc/tier"] == "gold"
    assert "tiny-chat" in str(node.description)


def test_the_launchpad_overrides_prompts_sharding_and_output(instance: dg.DagsterInstance) -> None:
    compiled = template("launchpad", "{taskType: echo, data: {type: list, items: [as written]}}")
    job = build_definitions([compiled]).resolve_job_def("launchpad")
    overrides = {
        "prompts": ["p1", "p2", "p3"],
        "parallel": {"max_shards": 2},
        "output": {"formats": ["csv"]},
    }
    result = job.execute_in_process(
        instance=instance, run_config={"ops": {"launchpad__task": {"config": overrides}}}
    )
    assert result.success
    folder = open_store().task(result.run_id)
    assert [row.output for row in read_rows(folder)] == ["p1", "p2", "p3"]
    assert sorted(folder.list("shards")) == ["shards/0000", "shards/0001"]
    assert folder.exists("responses.csv")
    assert not folder.exists("responses.parquet")


MODEL_OF_THE_HUB = {
    "apiVersion": "mloc/v1",
    "kind": "InferenceTask",
    "metadata": {"name": "other-model"},
    "spec": {
        "model": {"source": {"type": "huggingface", "identifier": "nobody/nothing"}},
        "data": {"type": "list", "items": ["What is the capital of Portugal?"]},
        "inference": {"temperature": 0, "max_tokens": 8},
    },
}


def test_the_launchpad_overrides_model_and_sampling(instance: dg.DagsterInstance) -> None:
    pytest.importorskip("torch")
    compiled = compile_mapping(MODEL_OF_THE_HUB)
    job = build_definitions([compiled]).resolve_job_def("other_model")
    overrides = {
        "model": {"source": {"type": "builtin", "identifier": "tiny-chat"}},
        "inference": {"max_tokens": 1},
    }
    result = job.execute_in_process(
        instance=instance, run_config={"ops": {"other_model__task": {"config": overrides}}}
    )
    (row,) = read_rows(open_store().task(result.run_id))
    assert (row.completion_tokens, row.finish_reason) == (1, "length")
    assert row.output
    assert "Lisbon".startswith(row.output)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"model": {"source": {"type": "bultin"}}}, "bultin"),
        ({"inference": {"temperature": "hot"}}, "temperature"),
        ({"inference": {"temperatur": 1}}, "temperatur"),
    ],
)
def test_a_wrong_override_is_refused_before_anything_runs(
    instance: dg.DagsterInstance, overrides: dict[str, Any], said: str
) -> None:
    job = build_definitions([compile_mapping(MODEL_OF_THE_HUB)]).resolve_job_def("other_model")
    with pytest.raises(dg.DagsterInvalidConfigError, match=said):
        job.execute_in_process(
            instance=instance, run_config={"ops": {"other_model__task": {"config": overrides}}}
        )
    assert list(open_store().task_ids()) == []


def test_an_unknown_override_is_refused_before_anything_runs(
    instance: dg.DagsterInstance,
) -> None:
    compiled = template("mistyped", "{taskType: echo, data: {type: list, items: [x]}}")
    job = build_definitions([compiled]).resolve_job_def("mistyped")
    with pytest.raises(dg.DagsterInvalidConfigError, match="promts"):
        job.execute_in_process(
            instance=instance,
            run_config={"ops": {"mistyped__task": {"config": {"promts": ["x"]}}}},
        )
    assert list(open_store().task_ids()) == []


STAGES_WITH_POISON = """
taskType: echo
data: {type: list, items: [a, b, c, d]}
stages:
  - name: first
    spec: {echo: {poison: [1, 2], error_budget: 0.25}}
  - name: second
    spec: {}
"""


def test_a_spent_error_budget_blocks_what_comes_after(instance: dg.DagsterInstance) -> None:
    outcome = run_template(template("poisoned", STAGES_WITH_POISON), instance)
    assert not outcome.succeeded
    assert [each.node for each in outcome.tasks] == ["first"]
    (said,) = outcome.failures
    assert said.startswith(
        "2 of 4 rows ended with an error, and error_budget allows 1; the first, row 1: poisoned row"
    )
    checks = checks_of(instance, outcome)
    assert checks == {
        "row_count": True,
        "indexes_complete": True,
        "error_budget": False,
        "no_empty_outputs": True,
    }
    folder = open_store().task(outcome.tasks[0].task_id)
    assert [row.error is None for row in read_rows(folder)] == [True, False, False, True]
    assert not folder.exists("manifest.json")


def test_errors_within_the_budget_stay_rows(instance: dg.DagsterInstance) -> None:
    spec = "{taskType: echo, echo: {poison: [1], error_budget: 0.5},"
    outcome = run_template(
        template("tolerant", spec + " data: {type: list, items: [a, b, c]}}"), instance
    )
    assert outcome.succeeded, outcome.failures
    folder = open_store().task(outcome.tasks[0].task_id)
    items = json.loads(folder.read_bytes("responses.json"))["result"]["items"]
    assert [each["finish_reason"] for each in items] == ["stop", "error", "stop"]
    assert verify_manifest(folder) == ()


STAGES_WITH_CODE = """
data: {type: list, items: [a]}
stages:
  - name: first
    spec: {taskType: echo}
  - name: second
    spec:
      taskType: inference
      model:
        source: {type: huggingface, identifier: owner/own-code, trust_remote_code: true}
"""


def test_no_stage_starts_where_a_later_one_may_not_run(instance: dg.DagsterInstance) -> None:
    outcome = run_template(template("own-code", STAGES_WITH_CODE), instance)
    assert not outcome.succeeded
    assert outcome.tasks == ()
    assert "'second' asks to run code that comes with 'owner/own-code'" in outcome.failures[0]
    assert "MLOC_TRUST_REMOTE_CODE=true" in outcome.failures[0]


STAGES_AFTER_A_FAILED_ROW = """
taskType: echo
echo: {error_budget: 0}
data: {type: list, items: [a, b, c, d]}
stages:
  - name: first
    spec: {echo: {poison: [1], error_budget: 0.25}}
  - name: second
    spec: {data: {type: upstream, node: first, text: "{output}!"}}
  - name: third
    spec: {data: {type: upstream, node: second, text: "{output}?"}}
"""


def test_a_row_that_failed_upstream_carries_its_error_and_costs_no_budget(
    instance: dg.DagsterInstance,
) -> None:
    outcome = run_template(template("chain", STAGES_AFTER_A_FAILED_ROW), instance)
    assert outcome.succeeded, outcome.failures
    third = open_store().task(outcome.tasks[2].task_id)
    result = json.loads(third.read_bytes("responses.json"))["result"]
    assert result["ok"]
    assert [each["output"] for each in result["items"]] == ["a!?", "", "c!?", "d!?"]
    assert result["items"][1]["error"].startswith("upstream: row 1 of 'first' failed: poisoned")
    figures = json.loads(third.read_bytes("summary.json"))
    assert (figures["errors"], figures["allowed_errors"]) == (1, 1)


def test_rows_that_failed_upstream_are_tried_again_through_all_stages(
    instance: dg.DagsterInstance,
) -> None:
    chain = template("chain", STAGES_AFTER_A_FAILED_ROW)
    first = run_template(chain, instance)
    begun = open_store().task(first.tasks[0].task_id)
    # Echo's poison never heals; a real row's cause does, such as an address that did not answer.
    (shard,) = [each for each in read_plan(begun).shards if each.start <= 1 < each.stop]
    with ShardWriter(begun, shard, 2, flush_rows=1, flush_interval_s=60) as writer:
        writer.write(OutputRow(1, "b", "b"))
    kept = run_template(chain, instance, workflow_id=first.workflow_id)
    assert rows_of(kept, "third")[1].fault == UPSTREAM_FAULT
    again = run_template(chain, instance, workflow_id=first.workflow_id, retry_errors=True)
    assert again.succeeded, again.failures
    before, after = rows_of(first, "third"), rows_of(again, "third")
    assert [row.output for row in after] == ["a!?", "b!?", "c!?", "d!?"]
    assert [row.error for row in after] == [None] * 4
    assert before[::2] == after[::2], "what was there is not computed again"
    for task in again.tasks:
        verify_manifest(open_store().task(task.task_id))


def test_failed_attempts_are_retried_for_the_missing_rows_only(
    instance: dg.DagsterInstance,
) -> None:
    spec = """
taskType: echo
retries: {delay_s: 0}
parallel: {max_shards: 4}
echo: {fail_rate: 0.5, seed: 0}
data: {type: list, items: [a, b, c, d, e, f, g, h]}
"""
    outcome = run_template(template("flaky", spec), instance)
    assert outcome.succeeded, outcome.failures
    rows = rows_of(outcome, "flaky")
    assert [row.output for row in rows] == list("abcdefgh")
    # A shard of two rows fails after its first: the second one comes from a later attempt.
    assert {row.attempt for row in rows} > {1}
    assert all(rows[start].attempt <= rows[start + 1].attempt for start in range(0, 8, 2))


def test_a_model_that_changed_is_not_mixed_with_what_it_was(
    instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    model = shutil.copytree(builtin_model_path("tiny-chat"), tmp_path / "model")
    spec = f"""
taskType: inference
model: {{engine: transformers, source: {{type: local, identifier: {model}}}}}
data: {{type: list, items: ["What is 3 + 4?", "What is the opposite of hot?"]}}
parallel: {{max_shards: 2}}
inference: {{temperature: 0, max_tokens: 4}}
"""
    compiled = template("asked", spec)
    done = run_template(compiled, instance)
    assert done.succeeded, done.failures
    before = rows_of(done, "asked")
    folder = open_store().task(done.workflow_id)
    folder.delete(list_parts(folder)[-1].name)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "bos_token_id": 5}))

    refused = run_template(compiled, instance, workflow_id=done.workflow_id)
    assert not refused.succeeded
    assert refused.bad_input
    assert "the model has changed since task" in refused.failures[0]
    assert "--fresh" in refused.failures[0]
    assert "--accept-changed-model" in refused.failures[0]
    assert rows_of(refused, "asked") == before[:1]

    mixed = run_template(
        compiled, instance, workflow_id=done.workflow_id, accept_changed_model=True
    )
    assert mixed.succeeded, mixed.failures
    first, second = rows_of(mixed, "asked")
    assert first == before[0]
    assert first.revision.startswith("sha256:")
    assert second.revision.startswith("sha256:")
    assert first.revision != second.revision
    with folder.open("responses.parquet") as file:
        table = pq.read_table(file)
    assert table["revision"].to_pylist() == [first.revision, second.revision]

    start_over(compiled, done.workflow_id)
    again = run_template(compiled, instance, workflow_id=done.workflow_id)
    assert again.succeeded, again.failures
    assert {row.revision for row in rows_of(again, "asked")} == {second.revision}


def test_retries_end(instance: dg.DagsterInstance) -> None:
    spec = "{taskType: echo, retries: {max: 1, delay_s: 0}, echo: {fail_rate: 1},"
    outcome = run_template(
        template("hopeless", spec + " data: {type: list, items: [a, b]}}"), instance
    )
    assert not outcome.succeeded
    assert any("attempt 2 of 2" in each for each in outcome.failures)


def test_a_retry_from_failure_goes_on_with_the_same_task(instance: dg.DagsterInstance) -> None:
    compiled = template("again", STAGES_WITH_POISON)
    job = build_definitions([compiled]).resolve_job_def("again")
    failed = job.execute_in_process(instance=instance, raise_on_error=False)
    assert not failed.success
    first = open_store().task(f"{failed.run_id}-first")
    worker = {row.index: row.attempt for row in read_rows(first)}
    config = dg.ReexecutionOptions.from_failure(failed.run_id, instance)
    again = dg.execute_job(
        dg.reconstructable(again_job), instance=instance, reexecution_options=config
    )
    assert not again.success
    assert list(open_store().task_ids()) == [f"{failed.run_id}-first"]
    assert {row.index: row.attempt for row in read_rows(first)} == worker


def again_job() -> dg.JobDefinition:
    compiled = template("again", STAGES_WITH_POISON)
    return build_definitions([compiled]).resolve_job_def("again")


def test_a_schedule_runs_the_job(instance: dg.DagsterInstance) -> None:
    document = {
        "apiVersion": "mloc/v1",
        "kind": "EchoTask",
        "metadata": {"name": "nightly"},
        "spec": {
            "schedule": {"cron": "0 3 * * *", "timezone": "Europe/Berlin"},
            "data": {"type": "list", "items": ["x"]},
        },
    }
    defs = build_definitions([compile_mapping(document)])
    schedule = defs.resolve_schedule_def("nightly_schedule")
    assert schedule.cron_schedule == "0 3 * * *"
    assert schedule.execution_timezone == "Europe/Berlin"
    assert schedule.job_name == "nightly"


def test_a_broken_template_does_not_take_the_library_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    good = "{apiVersion: mloc/v1, kind: EchoTask, metadata: {name: good}, spec: "
    good += "{taskType: echo, data: {type: list, items: [x]}}}"
    (tmp_path / "good.yaml").write_text(good)
    (tmp_path / "bad.yaml").write_text(good.replace("taskType", "tsakType"))
    monkeypatch.setenv("MLOC_TEMPLATES_DIR", str(tmp_path))
    assert [each.metadata.name for each in runnable_library()] == ["good"]
    assert "bad.yaml" in caplog.text
    assert "taskType" in caplog.text


def test_secrets_from_the_environment_reach_no_file(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_TOKEN", "s3cr3t-value")
    spec = """
taskType: echo
data: {type: list, items: [x]}
retries: {max: 0}
output:
  destination:
    type: http
    url: "http://127.0.0.1:9/nobody"
    max_attempts: 1
    headers: {Authorization: "Bearer ${MY_TOKEN}"}
"""
    outcome = run_template(template("secretive", spec), instance)
    assert not outcome.succeeded
    assert "127.0.0.1:9" in " ".join(outcome.failures)
    store = Path(open_store().url)
    assert store.is_dir()
    written = b"".join(path.read_bytes() for path in store.rglob("*") if path.is_file())
    events = str(instance.all_logs(outcome.run_id))
    assert b"s3cr3t-value" not in written
    assert "s3cr3t-value" not in events + str(outcome.failures)
