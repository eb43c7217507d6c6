"""The Celery application: messages that wake workers, and nothing else.

What is to be done lies in the tickets. A lost message costs an idle worker's next look at its
queues, a doubled one costs nothing.
"""

from __future__ import annotations

import logging
from functools import cache

from celery import Celery
from kombu.exceptions import OperationalError

from mloc_dagster.services.redis import CELERY_KEYS

_log = logging.getLogger(__name__)

RING = "mloc.ring"
"""Name of the only task."""


@cache
def celery_app(url: str) -> Celery:
    """Builds the application on a Redis."""
    app = Celery("mloc", broker=url)
    app.conf.update(
        task_ignore_result=True,
        task_acks_late=False,
        # A busy worker must not sit on messages that would wake an idle one.
        worker_disable_prefetch=True,
        worker_prefetch_multiplier=1,
        worker_enable_remote_control=False,
        worker_send_task_events=False,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_transport_options={
            "global_keyprefix": CELERY_KEYS,
            "socket_timeout": 10,
            "socket_connect_timeout": 2,
            "socket_keepalive": True,
            # Messages that went unacknowledged in a crash only wake a worker for nothing.
            "visibility_timeout": 3600,
        },
    )
    return app


def ring(url: str, queue: str, times: int = 1) -> None:
    """Wakes up to `times` idle workers of a queue; they would look by themselves soon after."""
    app = celery_app(url)
    try:
        with app.producer_or_acquire() as producer:
            for _ in range(times):
                app.send_task(RING, queue=queue, producer=producer, retry=False)
    except OperationalError as error:
        _log.info("nobody is woken for %s: %s", queue, error)
