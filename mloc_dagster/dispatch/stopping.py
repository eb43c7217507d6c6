"""Stopping what somebody does not want any more."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping

import dagster as dg
from dagster import DagsterRunStatus

from mloc_dagster.ledger.model import PlannedRun, TaskEntry
from mloc_dagster.results.batch_members import cancelled_members, mark_cancelled
from mloc_dagster.results.store import open_store
from mloc_dagster.tasks.cancel import launcher_of

_log = logging.getLogger(__name__)

_AGAIN_AFTER_S = 10.0


class Stopping:
    """Asks runs to stop, now and then again; what comes of it is seen where outcomes are.

    Args:
        instance: Where the runs are.
    """

    def __init__(self, instance: dg.DagsterInstance) -> None:
        self._instance = instance
        self._asked: dict[str, float] = {}

    def stop(self, unwanted: Iterable[TaskEntry], open_runs: Mapping[str, PlannedRun]) -> None:
        """Stops the runs of tasks; that of a batch when none of its members is wanted."""
        for task in unwanted:
            planned = open_runs.get(task.run_id or "")
            if planned is None or not planned.handed_over or self._asked_lately(task.task_id):
                continue
            self._asked[task.task_id] = time.monotonic()
            if planned.workflow_id is None:
                mark_cancelled(open_store(), planned.run_id, task.task_id)
                marked = cancelled_members(open_store(), planned.run_id)
                if not marked.issuperset(planned.task_ids):
                    continue
            self._end(planned.run_id)

    def _asked_lately(self, task_id: str) -> bool:
        return time.monotonic() - self._asked.get(task_id, float("-inf")) < _AGAIN_AFTER_S

    def _end(self, run_id: str) -> None:
        run = self._instance.get_run_by_id(run_id)
        if run is None or run.is_finished or run.status is DagsterRunStatus.CANCELING:
            return
        _log.info("run %s is stopped: nobody wants it any more", run_id)
        launcher_of(self._instance).terminate(run_id)

    def forget(self, planned: PlannedRun) -> None:
        """Forgets the tasks of a run that has ended."""
        for each in planned.task_ids:
            self._asked.pop(each, None)
