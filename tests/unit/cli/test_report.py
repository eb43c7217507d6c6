"""The closing table and document of `mloc run`, over summaries that the real writer wrote."""

from __future__ import annotations

import io
import uuid
from datetime import UTC, datetime, timedelta

from rich.console import Console

from mloc_dagster.cli.display.report import TemplateRun, print_report, report_json
from mloc_dagster.local_run import RunOutcome, TaskOutcome
from mloc_dagster.planning import Chunk, Plan, cut_shards
from mloc_dagster.results import UNPRICED, OutputRow, Rates, ShardWriter, aggregate_rows, open_store

_STARTED = datetime(2026, 1, 1, tzinfo=UTC)
PLAIN = OutputRow(0, "p", "o", prompt_tokens=10, completion_tokens=5, engine_s=1.0)
CACHED = OutputRow(0, "p", "o", prompt_tokens=10, completion_tokens=5, cached_tokens=4, engine_s=1)
REUSED = OutputRow(1, "q", "o", prompt_tokens=10, completion_tokens=5, reused="task", saved_s=1.0)


def task(node: str, *rows: OutputRow, rates: Rates = UNPRICED) -> TaskOutcome:
    folder = open_store(f"memory://{uuid.uuid4().hex}").task(node)
    plan = Plan(
        task_id=node,
        source="a list",
        rows=len(rows),
        data_version="d" * 64,
        seed=1,
        chunks=(Chunk(name="input/0.jsonl", start=0, rows=len(rows)),),
        shards=tuple(cut_shards(node, len(rows), 1)),
    )
    with ShardWriter(folder, plan.shards[0], 1, flush_rows=99, flush_interval_s=60) as writer:
        for row in rows:
            writer.write(row)
    now = _STARTED + timedelta(seconds=2)
    summary = aggregate_rows(
        folder, plan, model="tiny", worker_id="w", started_at=_STARTED, rates=rates, now=now
    )
    return TaskOutcome(node, node, folder.url, summary)


def run_of(*tasks: TaskOutcome) -> TemplateRun:
    outcome = RunOutcome("run", "flow", succeeded=True, tasks=tasks, failures=(), bad_input=False)
    return TemplateRun("asked", outcome, frozenset(), interrupted=False, resume=None)


def table(*tasks: TaskOutcome) -> list[list[str]]:
    out = io.StringIO()
    print_report(run_of(*tasks), Console(file=out, width=120))
    lines = [line for line in out.getvalue().splitlines() if line and "─" not in line]
    return [line.split() for line in lines[: 1 + len(tasks)]]


def test_a_task_without_savings_or_a_price_has_no_columns_for_them() -> None:
    headings, cells = table(task("plain", PLAIN))
    assert headings == ["task", "rows", "errors", "tokens", "tokens/s", "time"]
    assert cells == ["plain", "1", "0", "5", "2.50", "2.0", "s"]


def test_what_was_reused_found_and_paid_has_columns_where_any_task_has_it() -> None:
    paid = task("paid", CACHED, REUSED, rates=Rates(cost_per_hour=3600))
    headings, plain, cells = table(task("plain", PLAIN), paid)
    assert " ".join(headings) == "task rows errors reused tokens tokens/s cache hits time cost"
    assert plain == ["plain", "1", "0", "5", "2.50", "2.0", "s"]
    assert cells == ["paid", "2", "0", "1", "10", "5.00", "40%", "2.0", "s", "1"]


def test_several_tasks_are_added_up_by_model() -> None:
    out = io.StringIO()
    tasks = task("one", PLAIN), task("two", PLAIN, rates=Rates(cost_per_hour=3600))
    print_report(run_of(*tasks), Console(file=out, width=120))
    lines = [line.split() for line in out.getvalue().splitlines()]
    place = next(place for place, words in enumerate(lines) if words[:1] == ["model"])
    assert " ".join(lines[place]) == "model tasks rows prompt tokens tokens engine time cost"
    assert " ".join(lines[place + 2]) == "tiny 2 2 20 10 2.0 s 1"

    (shown,) = report_json([run_of(*tasks)], ok=True)["models"]  # type: ignore[misc]
    assert (shown["model"], shown["tasks"], shown["engine_seconds"]) == ("tiny", 2, 2.0)


def test_programs_get_the_whole_usage() -> None:
    paid = task("paid", CACHED, REUSED, rates=Rates(cost_per_hour=3600))
    (shown,) = report_json([run_of(paid)], ok=True)["tasks"]  # type: ignore[misc]
    assert shown["usage"]["reused_rows"] == {"task": 1, "cache": 0}
    assert (shown["usage"]["cache_hit_rate"], shown["usage"]["cost"]) == (0.4, 1.0)
