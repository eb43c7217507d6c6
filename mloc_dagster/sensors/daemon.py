"""Dagster's daemon, whose run queue is looked at when there is news of it, in order of slack.

    python -m mloc_dagster.sensors.daemon WORKSPACE

Dagster's own looks at the queue once a second, which is most of the time from a click on Launch to
the first row of a warm model. Here PostgreSQL notifies it of each run that is queued or ends
(`services.storages`). It alone takes runs out of the queue, by Dagster's own rules: limits and
priorities hold as ever. Without a notification it looks once a second.

Taking a run out and handing it over are two steps. A daemon that was killed between them leaves a
run that starts and that nobody has: the next daemon hands it over before it looks at the queue.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from threading import Event
from time import monotonic

import dagster as dg

from mloc_dagster.errors import TransientError
from mloc_dagster.events import STREAM_AWAY
from mloc_dagster.fleet import RunWorkerStatus
from mloc_dagster.home import postgres_url
from mloc_dagster.sensors.slo import JobEstimates, publish_missed, reorder_queue
from mloc_dagster.services import (
    QUEUE_CHANNEL,
    DaemonIterator,
    IWorkspaceProcessContext,
    Notifications,
    QueuedRunCoordinatorDaemon,
    SpanMarker,
    run_daemons,
    serializable_error_info_from_exc_info,
)

_log = logging.getLogger("dagster.mloc")

_LOOK_EVERY_S = 1.0

# Between two looks: each reads the queue, and under load there is news all the time.
_PAUSE_S = 0.05

# Dagster's loop asks between two of these whether to end.
_STEP_S = 0.5


class News:
    """Waits for news of the queue; while the database is away there is none."""

    def __init__(self, connect: Callable[[], Notifications]) -> None:
        self._connect = connect
        self._open: Notifications | None = None

    def wait(self, timeout_s: float, stopping: Event) -> bool:
        """Returns whether there is news, after `timeout_s` at the latest."""
        try:
            if self._open is None:
                self._open = self._connect()
            return self._open.wait(timeout_s)
        except TransientError as error:
            _log.warning("the queue is looked at once a second: %s", error)
            self.close()
            stopping.wait(timeout_s)
            return False

    def close(self) -> None:
        """Ends the connection."""
        if self._open is not None:
            self._open.close()
            self._open = None


class Deadlines:
    """What the queue's order and its SLOs need, look by look."""

    def __init__(self) -> None:
        self._estimates = JobEstimates()
        self._said_at = float("-inf")

    def put_in_order(self, instance: dg.DagsterInstance) -> None:
        """Raises priorities where the queue is not in order of slack."""
        reorder_queue(instance, self._estimates)

    def tell_missed(self, instance: dg.DagsterInstance) -> None:
        """Publishes what is late, once a second at most."""
        if monotonic() - self._said_at < _LOOK_EVERY_S:
            return
        self._said_at = monotonic()
        try:
            publish_missed(instance)
        except STREAM_AWAY as error:
            _log.warning("Redis cannot be reached, missed SLOs follow later: %s", error)


def hand_over(context: IWorkspaceProcessContext) -> None:
    """Hands over the runs that were taken out of the queue and that no run worker was asked for."""
    instance = context.instance
    workspace = context.create_request_context()
    for run in instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTING])):
        health = instance.run_launcher.check_run_worker_health(run)
        now = instance.get_run_by_id(run.run_id)
        # Its run worker may have begun it, or ended it, between the two questions.
        still = now is not None and now.status is dg.DagsterRunStatus.STARTING
        if still and health.status is RunWorkerStatus.FAILED:
            _log.info("run %s was taken out of the queue and not handed over", run.run_id)
            instance.resume_run(run.run_id, workspace, attempt_number=1)


class QueueDaemon(QueuedRunCoordinatorDaemon):
    """Takes runs out of the queue when there is news of it.

    Args:
        news: Says when there is.
    """

    def __init__(self, news: News) -> None:
        super().__init__(interval_seconds=_LOOK_EVERY_S)
        self._news = news
        self._deadlines = Deadlines()
        self._handed_over = False

    def core_loop(
        self, workspace_process_context: IWorkspaceProcessContext, shutdown_event: Event
    ) -> DaemonIterator:
        """Looks at the queue again and again; yields as often as Dagster wants to hear of it."""
        instance = workspace_process_context.instance
        try:
            while True:
                began = monotonic()
                yield SpanMarker.START_SPAN
                # A queue whose order cannot be kept is served all the same.
                for look in (
                    lambda _: self._hand_over_once(workspace_process_context),
                    self._deadlines.put_in_order,
                    lambda _: self.run_iteration(workspace_process_context),
                    self._deadlines.tell_missed,
                ):
                    try:
                        yield from look(instance) or ()
                    except Exception:  # noqa: BLE001 (as Dagster's own loop does)
                        error = serializable_error_info_from_exc_info(sys.exc_info())
                        _log.error("Caught error:\n%s", error)
                        yield error
                yield SpanMarker.END_SPAN
                shutdown_event.wait(_PAUSE_S)
                while (left := began + _LOOK_EVERY_S - monotonic()) > 0:
                    if self._news.wait(min(left, _STEP_S), shutdown_event):
                        break
                    yield None
                yield None
        finally:
            self._news.close()

    def _hand_over_once(self, context: IWorkspaceProcessContext) -> None:
        if not self._handed_over:
            hand_over(context)
            self._handed_over = True


def run(workspace: str) -> None:
    """Runs Dagster's daemons, with this queue's, until SIGTERM or Ctrl-C.

    Args:
        workspace: The file that names the code locations.
    """
    news = News(lambda: Notifications(postgres_url(), QUEUE_CHANNEL))
    run_daemons(workspace, QueueDaemon(news))


if __name__ == "__main__":
    try:
        run(sys.argv[1])
    except KeyboardInterrupt:
        sys.exit(0)
