"""The loop between the ledger and the fleet: one process of a fleet at a time runs it."""

from __future__ import annotations

import logging
import time
import uuid
from collections import Counter
from datetime import UTC, datetime

import dagster as dg

from mloc_dagster.dispatch.batching import MOST_AT_ONCE, Group, by_slack, next_groups
from mloc_dagster.dispatch.following import Following
from mloc_dagster.dispatch.launch import Preparing, Unwanted, hand_over
from mloc_dagster.dispatch.open_runs import OpenRuns
from mloc_dagster.dispatch.outcomes import publish_cancelled, publish_submitted
from mloc_dagster.dispatch.recovery import Mending, Stopping
from mloc_dagster.errors import MlocError, TransientError
from mloc_dagster.fleet import RUNS_QUEUE, FleetEngine
from mloc_dagster.ledger import Ledger, PlannedRun
from mloc_dagster.services import DATABASE_AWAY
from mloc_dagster.settings import settings
from mloc_dagster.wire import TaskState

_log = logging.getLogger(__name__)

AWAY = (TransientError, OSError, *DATABASE_AWAY)
"""What is raised while the database, the fleet or the store is away: it is back some time."""

_LOOKED_AT = 4096
"""Waiting tasks that are considered at a time, the most urgent ones."""

_DETAILS_EVERY_S = 1.0
_DETAILS_AT_ONCE = 4
_TICKETS_EVERY_S = 2.0


class Dispatcher:
    """Gives waiting tasks their runs, and tells the ledger what becomes of these.

    Everything that it must not forget is in the ledger; another dispatcher goes on at any point.

    Args:
        ledger: What was accepted.
        instance: Where runs are.
        engine: The fleet.
    """

    def __init__(self, ledger: Ledger, instance: dg.DagsterInstance, engine: FleetEngine) -> None:
        self._ledger = ledger
        self._instance = instance
        self._engine = engine
        self._runs = OpenRuns(ledger, instance, engine)
        self._keys: dict[str, str] = {}
        self._owners: dict[str, str] = {}
        self._tickets_at = 0.0
        self._preparing = Preparing(lambda planned: hand_over(instance, ledger, planned))
        self._stopping = Stopping(instance)
        self._mending = Mending(instance, engine)
        self._following = Following(ledger, instance)

    def close(self) -> None:
        """Ends what is done beside the loop; what is not handed over yet is in the ledger."""
        self._preparing.close()

    @property
    def idle(self) -> bool:
        """Whether nothing is under way."""
        return not self._runs

    def turn(self) -> None:
        """Looks once at everything that there is to do.

        Raises:
            TransientError: If the database or Redis is away.
        """
        if self._following.look():
            self._runs.read()
        publish_cancelled(self._ledger)
        self._stopping.stop(self._ledger.cancelling(), self._runs.by_id)
        for ended in self._runs.look():
            self._forget(ended)
        self._mend()
        self._dispatch()
        self._hand_over()

    def _forget(self, planned: PlannedRun) -> None:
        self._keys.pop(planned.run_id, None)
        self._owners.pop(planned.run_id, None)
        self._stopping.forget(planned)

    def _mend(self) -> None:
        now = time.monotonic()
        if now - self._tickets_at >= _TICKETS_EVERY_S:
            self._tickets_at = now
            self._mending.look(self._runs.on_the_fleet)

    # Planning

    def _dispatch(self) -> None:
        slots = self._slots() - self._runs.count_slots()
        if slots <= 0:
            return
        busy = Counter(self._keys[each.run_id] for each in self._runs if each.run_id in self._keys)
        full = [key for key, count in busy.items() if count >= MOST_AT_ONCE]
        at_work = {each.workflow_id for each in self._runs}
        found = self._ledger.waiting(_LOOKED_AT, without=full)
        now = datetime.now(UTC)
        waiting = by_slack([each for each in found if each.workflow_id not in at_work], now)
        groups = next_groups(waiting, busy, now, slots=slots)
        if not groups:
            return
        keys = {str(uuid.uuid4()): group for group in groups}
        planned = [self._planned(run_id, group) for run_id, group in keys.items()]
        decided = self._ledger.plan_runs(planned)
        publish_submitted(self._ledger, decided)
        for each in decided:
            self._runs.add(each)
            group = keys[each.run_id]
            self._owners[each.run_id] = group.tasks[0].owner
            if group.batch_key is not None:
                self._keys[each.run_id] = group.batch_key

    def _planned(self, run_id: str, group: Group) -> PlannedRun:
        first = group.tasks[0]
        if group.batch_key is not None:
            ids = tuple(each.task_id for each in group.tasks)
            return PlannedRun(run_id=run_id, workflow_id=None, task_ids=ids)
        found = self._ledger.workflow(first.workflow_id)
        tasks = [each for each in found if each.run_id is None and not each.state.ended]
        return PlannedRun(
            run_id=run_id,
            workflow_id=first.workflow_id,
            task_ids=tuple(each.task_id for each in tasks),
            retry_rows=any(each.retry_rows for each in tasks),
        )

    def _slots(self) -> int:
        carriers = [each for each in self._engine.workers() if RUNS_QUEUE in each.queues]
        return settings().run_slots * len(carriers)

    # Handing over

    def _hand_over(self) -> None:
        """Hands batches over, and whole templates beside the loop: their jobs are to be built."""
        handed: list[PlannedRun] = []
        for planned in [each for each in self._runs if not each.handed_over]:
            if planned.workflow_id is not None:
                self._preparing.add(planned, self._owner(planned))
                continue
            try:
                hand_over(self._instance, self._ledger, planned)
            except AWAY:
                raise
            except Exception as error:  # noqa: BLE001 (one template must not stop all others)
                self._refuse(planned, error)
            else:
                handed.append(planned)
        for planned, error in self._preparing.ready():
            if isinstance(error, AWAY):
                raise error
            if error is not None:
                self._refuse(planned, error)
            else:
                handed.append(planned)
        self._runs.hand_over(handed)

    def _owner(self, planned: PlannedRun) -> str:
        if planned.run_id not in self._owners:  # planned by a dispatcher before this one
            (first, *_) = self._ledger.tasks(planned.task_ids[:1]).values()
            self._owners[planned.run_id] = first.owner
        return self._owners[planned.run_id]

    def _refuse(self, planned: PlannedRun, error: Exception) -> None:
        """Ends a run that cannot be made: its tasks say why."""
        unwanted, ours = isinstance(error, Unwanted), isinstance(error, MlocError)
        if not unwanted:
            _log.warning(
                "run %s cannot be made: %s", planned.run_id, error, exc_info=None if ours else error
            )
        if planned.workflow_id is None and len(planned.task_ids) > 1:
            self._runs.give_back(planned)
        elif unwanted:
            self._runs.refuse(planned, "", TaskState.CANCELLED)
        else:
            why = str(error) if ours else f"its run cannot be made: {type(error).__name__}: {error}"
            self._runs.refuse(planned, why, TaskState.DEAD)
