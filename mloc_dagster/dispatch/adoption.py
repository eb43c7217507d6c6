"""Runs that somebody started outside the ledger for tasks that are in it."""

from __future__ import annotations

import time

import dagster as dg
from dagster._core.storage.runs import SqlRunStorage
from dagster._core.storage.tags import PARENT_RUN_ID_TAG

from mloc_dagster.ledger.ledger import Ledger
from mloc_dagster.ledger.model import PlannedRun
from mloc_dagster.ops.plan import WORKFLOW_TAG
from mloc_dagster.services.run_rows import runs_tagged

_EVERY_S = 2.0
_LOOKBACK_S = 600.0
_FIRST_LOOKBACK_S = 24 * 3600.0


class Adoption:
    """Notices re-executions from Dagster's UI, and retries by those who did not ask the API.

    Args:
        ledger: Whose tasks.
        instance: Where runs are.
    """

    def __init__(self, ledger: Ledger, instance: dg.DagsterInstance) -> None:
        self._ledger = ledger
        self._instance = instance
        self._looked_at: float | None = None
        self._known: set[str] = set()

    def look(self) -> list[PlannedRun]:
        """Returns runs that are the newest of their tasks from now on."""
        now = time.monotonic()
        if self._looked_at is not None and now - self._looked_at < _EVERY_S:
            return []
        storage = self._instance.run_storage
        if not isinstance(storage, SqlRunStorage):
            return []
        lookback = _FIRST_LOOKBACK_S if self._looked_at is None else _LOOKBACK_S
        self._looked_at = now
        since = time.time() - lookback
        rows = runs_tagged(storage, PARENT_RUN_ID_TAG, (WORKFLOW_TAG,), ended_after_s=since)
        workflow_of = {each.run_id: each.tags.get(WORKFLOW_TAG) for each in rows}
        found = [
            self._ledger.adopt(run_id, workflow_id)
            for run_id, workflow_id in workflow_of.items()
            if workflow_id is not None and run_id not in self._known
        ]
        self._known = set(workflow_of)
        return [each for each in found if each is not None]
