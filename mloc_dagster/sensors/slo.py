"""Lets runs leave the queue in order of slack, and says which SLOs were missed."""

from collections.abc import Mapping
from time import monotonic, time

import dagster as dg

from mloc_dagster.errors import TerminalError
from mloc_dagster.events import (
    Payload,
    SloMiss,
    TaskEvent,
    TaskEventType,
    open_redis,
    send,
)
from mloc_dagster.fleet import (
    PromisedRun,
    QueuedRun,
    estimate_s,
    late_s,
    raised_priorities,
    slack_s,
)
from mloc_dagster.ops import SLO_MISSED_TAG, SLO_TAG, SUBMITTED_TAG, workflow_id
from mloc_dagster.services import RunRow, SqlRunStorage, last_durations_s, queued_runs, runs_tagged
from mloc_dagster.settings import settings

PRIORITY_TAG = "dagster/priority"

SLACK_TAG = ".dagster/mloc_slack_s"
"""Seconds that the run could wait when its priority was raised; marks the priority as ours."""

_HISTORY = 20
_WRITES = 20
"""Runs whose priority changes in one look at most, the most urgent first: more than Dagster takes
out of its queue until the next look, and few enough not to load the database."""
_LOOKBACK_S = 120.0


class JobEstimates:
    """How long jobs take, read from the database every now and then.

    Args:
        keep_s: Seconds after which a job's estimate is read anew.
    """

    def __init__(self, keep_s: float = 30.0) -> None:
        self._keep_s = keep_s
        self._known: dict[str, tuple[float, float]] = {}

    def of(self, storage: SqlRunStorage, job_name: str) -> float:
        """Returns the seconds that a run of the job takes; 0 before the first one succeeded."""
        at, seconds = self._known.get(job_name, (float("-inf"), 0.0))
        if monotonic() - at > self._keep_s:
            seconds = estimate_s(last_durations_s(storage, job_name, _HISTORY))
            self._known[job_name] = (monotonic(), seconds)
        return seconds


def reorder_queue(instance: dg.DagsterInstance, estimates: JobEstimates) -> Mapping[str, int]:
    """Raises priorities where the queue is not in order of slack.

    Returns:
        The priorities that were written, by run.
    """
    storage = _storage(instance)
    rows = queued_runs(storage, (SLO_TAG, PRIORITY_TAG, SLACK_TAG, SUBMITTED_TAG))
    if not any(SLO_TAG in row.tags for row in rows):
        return {}
    runs = {row.run_id: _queued(row, estimates.of(storage, row.job_name)) for row in rows}
    now = time()
    raised = dict(list(raised_priorities(list(runs.values()), now).items())[:_WRITES])
    for run_id, priority in raised.items():
        slack = f"{slack_s(runs[run_id], now):.1f}"
        instance.add_run_tags(run_id, {PRIORITY_TAG: str(priority), SLACK_TAG: slack})
    return raised


def publish_missed(instance: dg.DagsterInstance, now_s: float | None = None) -> list[TaskEvent]:
    """Publishes runs that are late for the first time, and tags them with how late.

    While a late run goes on its tag says how late it was when that was noticed; the seconds of
    its end replace them.

    Returns:
        One event for each run that is late for the first time.

    Raises:
        redis.RedisError: If there is a Redis and it cannot be reached; nothing is tagged then.
    """
    now = time() if now_s is None else now_s
    since = now - _LOOKBACK_S
    tags = (SLO_TAG, SLO_MISSED_TAG, SUBMITTED_TAG)
    rows = runs_tagged(_storage(instance), SLO_TAG, tags, ended_after_s=since)
    promised = [run for row in rows if (run := _promised(row)) is not None]
    events: list[TaskEvent] = []
    late_tags: dict[str, str] = {}
    for run in promised:
        late = late_s(run, now)
        if late <= 0:
            continue
        if run.told_late_s is None:
            events.append(_missed(instance, run, late))
            late_tags[run.run_id] = f"{late:.1f}"
        elif run.ended_s is not None and f"{run.told_late_s:.1f}" != f"{late:.1f}":
            late_tags[run.run_id] = f"{late:.1f}"
    url = settings().redis_url
    if url is not None and events:
        with open_redis(url) as client:
            send(client, events)
    for run_id, seconds in late_tags.items():
        instance.add_run_tags(run_id, {SLO_MISSED_TAG: seconds})
    return events


def _storage(instance: dg.DagsterInstance) -> SqlRunStorage:
    storage = instance.run_storage
    if not isinstance(storage, SqlRunStorage):
        raise TerminalError("SLOs are kept on runs in an SQL database only")
    return storage


def _queued(row: RunRow, estimate: float) -> QueuedRun:
    slo = _seconds(row.tags.get(SLO_TAG))
    return QueuedRun(
        run_id=row.run_id,
        submitted_s=_submitted_s(row),
        slo_s=slo,
        estimate_s=estimate,
        priority=_whole(row.tags.get(PRIORITY_TAG)),
        pinned=PRIORITY_TAG in row.tags and SLACK_TAG not in row.tags,
    )


def _promised(row: RunRow) -> PromisedRun | None:
    slo = _seconds(row.tags.get(SLO_TAG))
    if slo is None:
        return None
    told = _seconds(row.tags.get(SLO_MISSED_TAG))
    return PromisedRun(row.run_id, _submitted_s(row), slo, row.ended_s, told)


def _submitted_s(row: RunRow) -> float:
    given = _seconds(row.tags.get(SUBMITTED_TAG))
    return row.created_s if given is None else given


def _missed(instance: dg.DagsterInstance, run: PromisedRun, late: float) -> TaskEvent:
    found = instance.get_run_by_id(run.run_id)
    return TaskEvent(
        type=TaskEventType.TASK_SLO_MISSED,
        task_id=run.run_id if found is None else workflow_id(found),
        run_id=run.run_id,
        payload=Payload(
            reason="ended late" if run.ended_s is not None else "late, and not done yet",
            slo=SloMiss(
                seconds=run.slo_s, elapsed_s=round(run.slo_s + late, 3), late_s=round(late, 3)
            ),
        ),
    )


def _seconds(text: str | None) -> float | None:
    """Reads a tag that people may have written, too."""
    try:
        return None if text is None else float(text)
    except ValueError:
        return None


def _whole(text: str | None) -> int:
    """Reads a priority as Dagster does."""
    try:
        return int(text or 0)
    except ValueError:
        return 0
