"""Dagster's runs as rows: the queue, how long jobs took, what was promised.

Dagster's own readers decode each run whole; a look at the queue once a second needs four values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import cast

import sqlalchemy as db
from dagster import DagsterRunStatus

from mloc_dagster.services.internals import RunsTable, RunTagsTable, SqlRunStorage

_runs = RunsTable.c

# The column has no zone: PostgreSQL fills it with the time of its own, which it knows and we do
# not. The same goes for the comparison with the last change below, whose other side has a zone.
_CREATED = db.cast(_runs.create_timestamp, db.TIMESTAMP(timezone=True))


@dataclass(frozen=True, slots=True)
class RunRow:
    """A run.

    Attributes:
        place: Grows with each run.
        run_id: The run.
        job_name: Its job.
        status: How it is.
        created_s: When it was created, in seconds since 1970.
        ended_s: When it ended, in the same; None while it has not.
        tags: Those that were asked for.
    """

    place: int
    run_id: str
    job_name: str
    status: DagsterRunStatus
    created_s: float
    ended_s: float | None
    tags: dict[str, str]


def queued_runs(storage: SqlRunStorage, tags: Sequence[str]) -> list[RunRow]:
    """Returns the queue in order of submission, with these tags of each run."""
    return _rows(storage, _runs.status == DagsterRunStatus.QUEUED.value, tags)


def runs_tagged(
    storage: SqlRunStorage, tag: str, tags: Sequence[str], *, ended_after_s: float
) -> list[RunRow]:
    """Returns runs with a tag that have not ended, or ended lately; canceled ones left out.

    Args:
        storage: The runs.
        tag: What they must have.
        tags: What to read of each.
        ended_after_s: Seconds since 1970.
    """
    tagged = RunTagsTable.alias()
    has_tag = db.exists().where(tagged.c.run_id == _runs.run_id, tagged.c.key == tag)
    open_states = (
        DagsterRunStatus.QUEUED,
        DagsterRunStatus.NOT_STARTED,
        DagsterRunStatus.STARTING,
        DagsterRunStatus.STARTED,
    )
    ended_states = (DagsterRunStatus.SUCCESS, DagsterRunStatus.FAILURE)
    since = datetime.fromtimestamp(ended_after_s, UTC)
    state = db.or_(
        _runs.status.in_([each.value for each in open_states]),
        # The time of the last change has an index, the time of the end has none.
        db.and_(
            _runs.status.in_([each.value for each in ended_states]),
            _runs.update_timestamp > since,
        ),
    )
    return _rows(storage, db.and_(state, has_tag), tags)


def last_durations_s(storage: SqlRunStorage, job_name: str, count: int) -> list[float]:
    """Returns the seconds that the last successful runs of a job took, the newest first."""
    query = (
        db.select(_runs.end_time - _runs.start_time)
        .where(
            _runs.pipeline_name == job_name,
            _runs.status == DagsterRunStatus.SUCCESS.value,
            _runs.start_time.is_not(None),
            _runs.end_time.is_not(None),
        )
        .order_by(_runs.id.desc())
        .limit(count)
    )
    with storage.connect() as connection:
        return [float(seconds) for (seconds,) in connection.execute(query)]


def runs_after(
    storage: SqlRunStorage, place: int, tag: str, tags: Sequence[str], *, limit: int
) -> list[RunRow]:
    """Returns the runs with a tag that were made after a place, oldest first.

    Args:
        storage: The runs.
        place: That of a run, or 0.
        tag: What they must have.
        tags: What to read of each.
        limit: How many at most.
    """
    tagged = RunTagsTable.alias()
    has_tag = db.exists().where(tagged.c.run_id == _runs.run_id, tagged.c.key == tag)
    chosen = db.select(_runs.id).where(_runs.id > place, has_tag).order_by(_runs.id).limit(limit)
    return _rows(storage, _runs.id.in_(chosen), tags)


def _rows(
    storage: SqlRunStorage, condition: db.ColumnElement[bool], tags: Sequence[str]
) -> list[RunRow]:
    query = (
        db.select(
            _runs.id,
            _runs.run_id,
            _runs.pipeline_name,
            _runs.status,
            _CREATED,
            _runs.end_time,
            RunTagsTable.c.key,
            RunTagsTable.c.value,
        )
        .select_from(
            RunsTable.outerjoin(
                RunTagsTable,
                db.and_(RunTagsTable.c.run_id == _runs.run_id, RunTagsTable.c.key.in_(tags)),
            )
        )
        .where(condition)
        .order_by(_runs.id)
    )
    found: dict[str, RunRow] = {}
    with storage.connect() as connection:
        for place, run_id, job, status, created, ended, key, value in cast(
            "Sequence[tuple]", connection.execute(query).all()
        ):
            row = found.get(run_id)
            if row is None:
                state = DagsterRunStatus(status)
                row = RunRow(place, run_id, job, state, created.timestamp(), ended, {})
                found[run_id] = row
            if key is not None:
                row.tags[key] = value
    return list(found.values())
