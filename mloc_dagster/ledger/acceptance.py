"""Accepting submissions: many at once, durably, each request key once."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import func, select, text
from sqlalchemy.engine import Connection

from mloc_dagster.errors import InputError
from mloc_dagster.ledger.database import CHANNEL, keep_contents, submissions
from mloc_dagster.ledger.model import FoundWorkflow, NewTask, Submission
from mloc_dagster.wire import TaskState


@dataclass(frozen=True, slots=True, kw_only=True)
class Accepted:
    """A submission that is durable.

    Attributes:
        workflow_id: That of the first submission with the same request key.
        new: Whether this one was the first.
        content_hash: Of its document.
    """

    workflow_id: str
    new: bool
    content_hash: str


class KeyReused(InputError):
    """A request key has come before with another body."""


_DOCUMENTS = text("""
    INSERT INTO mloc.documents (content_hash, document)
    SELECT hash, CAST(document AS json)
    FROM unnest(CAST(:hashes AS text[]), CAST(:documents AS text[])) AS given (hash, document)
    ON CONFLICT DO NOTHING
""")

_SUBMISSIONS = text("""
    INSERT INTO mloc.submissions (workflow_id, request_key, request_hash, content_hash)
    SELECT * FROM unnest(
        CAST(:ids AS text[]), CAST(:keys AS text[]), CAST(:requests AS text[]),
        CAST(:hashes AS text[])
    )
    ON CONFLICT DO NOTHING
    RETURNING workflow_id
""")

# One statement whatever the number of rows: building one of many rows took the longest of all.
_TASKS = text("""
    INSERT INTO mloc.tasks (
        task_id, workflow_id, node, task_type, template, owner, origin, labels, label_pairs,
        depends_on, state, batch_key, due, rows, submitted_at
    )
    SELECT
        task_id, workflow_id, node, task_type, template, owner, origin, labels, label_pairs,
        depends_on, state, batch_key, due, rows, coalesce(submitted_at, clock_timestamp())
    FROM json_to_recordset(CAST(:tasks AS json)) AS given (
        task_id text, workflow_id text, node text, task_type text, template text, owner text,
        origin text, labels jsonb, label_pairs text[], depends_on text[], state text,
        batch_key text, due timestamptz, rows integer, submitted_at timestamptz
    )
    ON CONFLICT (task_id) DO NOTHING
""")


def accept(connection: Connection, given: Sequence[Submission]) -> list[Accepted | KeyReused]:
    """Writes submissions; see `Ledger.accept`."""
    keep_contents(connection)
    _insert_documents(connection, given)
    new = _insert_new(connection, given)
    rows = [_task(each, task) for each in given if each.workflow_id in new for task in each.tasks]
    if rows:
        _insert_tasks(connection, rows)
        connection.execute(select(func.pg_notify(CHANNEL, "accepted")))
    known = _known(connection, given)
    return [_answer(each, known) for each in given]


def take_in(connection: Connection, found: FoundWorkflow) -> None:
    """Writes the tasks of runs that are there already, unless they are known."""
    submitted = {"origin": found.origin, "submitted_at": found.submitted_at.isoformat()}
    _insert_tasks(connection, [_task(found, each) | submitted for each in found.tasks])


def _insert_tasks(connection: Connection, rows: Sequence[Mapping[str, object]]) -> None:
    connection.execute(_TASKS, {"tasks": json.dumps(rows)})


def _insert_documents(connection: Connection, given: Sequence[Submission]) -> None:
    # In one order in every process, so that two never wait for one another.
    by_hash = {each.content_hash: each.document for each in given}
    hashes = sorted(by_hash)
    documents = [json.dumps(by_hash[each]) for each in hashes]
    connection.execute(_DOCUMENTS, {"hashes": hashes, "documents": documents})


def _insert_new(connection: Connection, given: Sequence[Submission]) -> set[str]:
    """Returns the workflows that are new: of a request with a key all of them, or none.

    The first document of a request decides: who comes with the same key meanwhile waits for it.
    """
    first = [each for each in given if each.request is None or each.request.place == 0]
    new = _insert_submissions(connection, first)
    keys = {each.request.key for each in first if each.request and each.workflow_id in new}
    further = [each for each in given if each.request and each.request.place > 0]
    return new | _insert_submissions(
        connection, [each for each in further if each.request and each.request.key in keys]
    )


def _insert_submissions(connection: Connection, given: Sequence[Submission]) -> set[str]:
    if not given:
        return set()
    ordered = sorted(given, key=_request_name)
    values = {
        "ids": [each.workflow_id for each in ordered],
        "keys": [each.request and each.request.name for each in ordered],
        "requests": [each.request and each.request.content_hash for each in ordered],
        "hashes": [each.content_hash for each in ordered],
    }
    return set(connection.scalars(_SUBMISSIONS, values))


def _request_name(given: Submission) -> str:
    return "" if given.request is None else given.request.name


def _known(connection: Connection, given: Sequence[Submission]) -> dict[str, tuple[str, str]]:
    """Returns the workflows of requests that came before, and the hash of each whole request."""
    names = [each.request.name for each in given if each.request is not None]
    if not names:
        return {}
    columns = (submissions.c.request_key, submissions.c.workflow_id, submissions.c.request_hash)
    rows = connection.execute(select(*columns).where(submissions.c.request_key.in_(names)))
    return {name: (workflow_id, request_hash) for name, workflow_id, request_hash in rows}


def _answer(given: Submission, known: Mapping[str, tuple[str, str]]) -> Accepted | KeyReused:
    workflow_id = given.workflow_id
    if given.request is not None:
        workflow_id, content_hash = known.get(given.request.name, (workflow_id, ""))
        if content_hash != given.request.content_hash:
            return KeyReused(f"Idempotency-Key {given.request.key!r} came before with another body")
    # Its own when it is given again because nobody heard that it was accepted.
    new = workflow_id == given.workflow_id
    return Accepted(workflow_id=workflow_id, new=new, content_hash=given.content_hash)


def _task(submission: Submission | FoundWorkflow, task: NewTask) -> dict[str, object]:
    labels = dict(submission.labels)
    return {
        "task_id": task.task_id,
        "workflow_id": submission.workflow_id,
        "node": task.node,
        "task_type": task.task_type,
        "template": submission.template_name,
        "owner": submission.owner,
        "origin": "api",
        "labels": labels,
        "label_pairs": label_pairs(labels),
        "depends_on": list(task.depends_on),
        "state": TaskState.WAITING if task.depends_on else TaskState.PENDING,
        "batch_key": task.batch_key,
        "due": None if task.due is None else task.due.isoformat(),
        "rows": task.rows,
    }


def label_pairs(labels: dict[str, str]) -> list[str]:
    """Returns labels in the form that they are searched in."""
    return [f"{name}\n{value}" for name, value in sorted(labels.items())]
