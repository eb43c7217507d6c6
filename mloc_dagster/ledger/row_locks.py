"""Locks that keep writers of the same rows from waiting for one another in a circle."""

from __future__ import annotations

from collections.abc import Collection

from sqlalchemy import text
from sqlalchemy.engine import Connection

from mloc_dagster.services.advisory_locks import AdvisoryLock

_LOCK = text("""
    SELECT FROM mloc.tasks WHERE task_id = ANY (:ids) ORDER BY task_id FOR NO KEY UPDATE
""")


def lock_tasks(connection: Connection, ids: Collection[str]) -> None:
    """Waits until nobody else changes some tasks, and keeps others from it until the commit.

    Every writer of several tasks begins with this. Statements that follow see the tasks as they are
    then, and an `UPDATE` would lock them in any order.
    """
    connection.execute(_LOCK, {"ids": list(ids)})


def keep_contents(connection: Connection) -> None:
    """Keeps request keys and documents from being deleted until the commit.

    Who accepts relies on those that are there already, and other transactions do not see yet that
    it does.
    """
    connection.execute(
        text("SELECT pg_advisory_xact_lock_shared(:key)"), {"key": AdvisoryLock.KEEP_CONTENTS}
    )


def may_delete_contents(connection: Connection) -> None:
    """Waits for those that keep contents, and lets no other accept until the commit."""
    connection.execute(
        text("SELECT pg_advisory_xact_lock(:key)"), {"key": AdvisoryLock.KEEP_CONTENTS}
    )
