"""The API with a ledger that holds very many tasks."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from itertools import batched
from pathlib import Path
from typing import Any

from control_plane_accept import under_load
from control_plane_options import Options
from control_plane_stack import ControlPlane, echo, percentiles
from sqlalchemy import create_engine, text

from mloc_dagster.compile import compile_text
from mloc_dagster.dispatch import batch_key
from mloc_dagster.ledger import Ledger, NewTask, PlannedRun, Submission, TaskChange
from mloc_dagster.wire import TaskState

_AT_ONCE = 500

_LISTS = {
    "list": "",
    "list_pending": "&status=PENDING",
    "list_done": "&status=DONE",
    "list_dead": "&status=DEAD",
    "list_owner": "&owner=team-7",
    "list_owner_pending": "&owner=team-7&status=PENDING",
    "list_template": "&name=stock",
    "list_type": "&type=echo",
    "list_label": "&label=project%3Dp13",
    "list_worker": "&worker=stock-3",
}


def measure_stock(options: Options, folder: Path, library: Path) -> dict[str, Any]:
    """Returns how fast it accepts, lists and shows, empty and full, and its size."""
    with ControlPlane(folder, library, workers=options.workers) as stack:
        stack.warm_up()
        rss = {"started": stack.rss_mib()}
        empty = under_load(stack, options)
        rss["after_load_of_empty"] = stack.rss_mib()
        with stack.dispatcher_paused():
            filled_s = _fill(stack, options)
            waiting = _reads(stack, options)
            rss["after_reads_of_full"] = stack.rss_mib()
        working = _reads(stack, options)
        full = under_load(stack, options)
        rss["after_load_of_full"] = stack.rss_mib()
    return {
        "finished": options.finished,
        "queued": options.queued,
        "filled_s": round(filled_s, 1),
        "nothing_at_work": waiting,
        "while_the_queue_is_worked_off": working,
        "empty": empty,
        "full": full,
        "accepted_ratio": round(full["accepted_per_s"] / empty["accepted_per_s"], 3),
        "api_rss_mib": rss,
    }


def _fill(stack: ControlPlane, options: Options) -> float:
    """Writes tasks that have ended, and then tasks that wait, into the ledger."""
    began = time.monotonic()
    template = _submission()
    with closing(Ledger.open(stack.plan.postgres_url)) as ledger:
        for numbers in batched(range(options.finished), _AT_ONCE):
            given = [_numbered(template, each) for each in numbers]
            ledger.accept(given)
            _end(ledger, [each.workflow_id for each in given])
        for numbers in batched(range(options.queued), _AT_ONCE):
            ledger.accept([_numbered(template, each) for each in numbers])
    # PostgreSQL does so by itself, a minute later.
    engine = create_engine(stack.plan.postgres_url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text("ANALYZE mloc.tasks, mloc.submissions, mloc.runs"))
    engine.dispose()
    return time.monotonic() - began


def _submission() -> Submission:
    ((compiled,), _) = compile_text(echo("stock", ["a row"]).encode(), "stock.yaml")
    task = NewTask(
        task_id="",
        node=compiled.tasks[0].task.name,
        task_type="echo",
        rows=1,
        batch_key=batch_key(compiled),
    )
    return Submission(
        workflow_id="",
        template_name="stock",
        owner="",
        labels={},
        content_hash=compiled.content_hash,
        document=compiled.document,
        tasks=(task,),
    )


def _numbered(template: Submission, number: int) -> Submission:
    name = str(uuid.uuid4())
    return replace(
        template,
        workflow_id=name,
        owner=f"team-{number % 20}",
        labels={"project": f"p{number % 50}"},
        tasks=(replace(template.tasks[0], task_id=name),),
    )


def _end(ledger: Ledger, ids: list[str]) -> None:
    run_id, now = str(uuid.uuid4()), datetime.now(UTC)
    ledger.plan_runs([PlannedRun(run_id=run_id, workflow_id=None, task_ids=tuple(ids))])
    ledger.change(
        [
            TaskChange(
                task_id=each,
                run_id=run_id,
                state=TaskState.DEAD if place % 100 == 0 else TaskState.DONE,
                started_at=now,
                ended_at=now,
                worker_id=f"stock-{place % 4}",
                rows=1,
                rows_finished=1,
                errors=0,
            )
            for place, each in enumerate(ids)
        ]
    )
    ledger.end_runs([run_id])


def _reads(stack: ControlPlane, options: Options) -> dict[str, Any]:
    """Returns the times of one client's requests."""
    found = {"show": percentiles(list(_show(stack, options)))}
    for name, query in _LISTS.items():
        times = _timed(stack, options.looks // 3, f"/api/v1/tasks?limit=100{query}")
        found[name] = percentiles(list(times))
    # Far from the newest.
    cursor = f"&cursor={max(2, options.finished // 2)}"
    times = _timed(stack, options.looks // 3, f"/api/v1/tasks?limit=100{cursor}")
    found["list_middle"] = percentiles(list(times))
    found["metrics"] = percentiles(list(_timed(stack, 10, "/metrics")))
    return found


def _show(stack: ControlPlane, options: Options) -> Iterator[float]:
    places = range(options.looks)
    step = (options.finished + options.queued) // options.looks
    for place in places:
        page = stack.get(f"/api/v1/tasks?limit=1&cursor={2 + place * step}")
        if page["tasks"]:
            yield from _timed(stack, 1, f"/api/v1/tasks/{page['tasks'][0]['task_id']}")


def _timed(stack: ControlPlane, count: int, path: str) -> Iterator[float]:
    for _ in range(count):
        began = time.monotonic()
        status, body = stack.request("GET", path)
        if status != 200:
            raise SystemExit(f"{path} answered {status}: {body[:300].decode()}")
        yield time.monotonic() - began
