"""A database for a ledger, what is put into it, and how its server goes."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, event, text
from sqlalchemy.engine import Connection, make_url

from mloc_dagster.home import postgres_url
from mloc_dagster.ledger import Accepted, Ledger, NewTask, PlannedRun, Request, Submission
from mloc_dagster.settings import settings


def own_database(session_home: Path, name: str) -> str:
    """Returns the address of an empty database on the session's server."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLOC_HOME", str(session_home))
        settings.cache_clear()
        server = make_url(postgres_url())
    settings.cache_clear()
    admin = create_engine(server, isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.execute(text(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)"))
        connection.execute(text(f"CREATE DATABASE {name}"))
    admin.dispose()
    return server.set(database=name).render_as_string(hide_password=False)


def submission(name: str = "echo", key: str | None = None, **changes: object) -> Submission:
    """Returns a submission of one task, which has the workflow's id.

    Args:
        name: Of its template.
        key: That of a request with this document only.
        changes: Other values.
    """
    workflow_id = str(uuid.uuid4())
    given: dict[str, object] = {
        "workflow_id": workflow_id,
        "template_name": name,
        "owner": "me",
        "labels": {"team": "a"},
        "content_hash": name.ljust(64, "0"),
        "document": {"metadata": {"name": name}, "text": "a\0b"},
        "tasks": (NewTask(task_id=workflow_id, node=name, task_type="echo", rows=1),),
        "request": key and Request(key=key, place=0, content_hash=name),
    }
    return Submission(**{**given, **changes})  # type: ignore[arg-type]


def accepted(ledger: Ledger, *given: Submission) -> list[str]:
    """Has submissions accepted; returns their workflows."""
    answers = ledger.accept(given)
    assert all(isinstance(each, Accepted) and each.new for each in answers)
    return [each.workflow_id for each in given]


def planned(ledger: Ledger, *task_ids: str) -> str:
    """Gives tasks a run; returns its id."""
    run_id = str(uuid.uuid4())
    (run,) = ledger.plan_runs([PlannedRun(run_id=run_id, workflow_id=None, task_ids=task_ids)])
    assert run.task_ids == task_ids
    return run_id


class KilledBefore:
    """Ends a ledger's connection at the server just before a statement is sent."""

    def __init__(self, ledger: Ledger, url: str, beginning: str) -> None:
        self._engine = ledger._engine
        self._admin = create_engine(url, isolation_level="AUTOCOMMIT")
        self._beginning = beginning

    def __enter__(self) -> None:
        event.listen(self._engine, "before_cursor_execute", self._kill)

    def _kill(self, connection: Connection, cursor: Any, statement: str, *_: object) -> None:
        if not statement.strip().startswith(self._beginning):
            return
        pid = connection.connection.dbapi_connection.info.backend_pid  # type: ignore[union-attr]
        with self._admin.connect() as admin:
            admin.execute(text("SELECT pg_terminate_backend(:pid, 10000)"), {"pid": pid})

    def __exit__(self, *_: object) -> None:
        event.remove(self._engine, "before_cursor_execute", self._kill)
        self._admin.dispose()
