"""The process behind `mloc worker`: Celery around one `Worker`, warm before its first ticket."""

from __future__ import annotations

import logging
import os
import socket
import warnings
from collections.abc import Mapping
from datetime import UTC, datetime

from celery.apps.worker import Worker as CeleryWorker
from celery.platforms import SecurityWarning
from celery.signals import worker_shutting_down

from mloc_dagster.events.redis import publishing_to_redis
from mloc_dagster.executors.base import ModelKey, model_key_text
from mloc_dagster.fleet.doorbell import RING, celery_app
from mloc_dagster.fleet.engine import RUNS_QUEUE, WorkerInfo
from mloc_dagster.fleet.hardware import detect_hardware, queues_for
from mloc_dagster.fleet.process_models import process_model_cache
from mloc_dagster.fleet.redis_engine import open_engine
from mloc_dagster.fleet.run_worker import RunWorker
from mloc_dagster.fleet.step_worker import StepWorker
from mloc_dagster.fleet.worker import Worker
from mloc_dagster.services.instance import open_fleet_instance
from mloc_dagster.settings import settings

_log = logging.getLogger(__name__)


def worker_info(queues: tuple[str, ...], tags: Mapping[str, str]) -> WorkerInfo:
    """Returns who this process is.

    Args:
        queues: Where it takes work from; empty for what its hardware names.
        tags: Free labels.
    """
    hardware = detect_hardware()
    now = datetime.now(UTC)
    return WorkerInfo(
        worker_id=settings().worker_name or f"{socket.gethostname()}-{os.getpid()}",
        host=socket.gethostname(),
        pid=os.getpid(),
        queues=queues or queues_for(hardware),
        hardware=hardware,
        tags=dict(tags),
        started_at=now,
        last_seen=now,
    )


def run_worker_process(queues: tuple[str, ...], tags: Mapping[str, str]) -> None:
    """Works until SIGTERM or SIGINT; the second signal ends it at once."""
    # Celery warns of root because of pickled messages; ours are JSON.
    warnings.simplefilter("ignore", SecurityWarning)
    engine = open_engine()
    info = worker_info(queues, tags)
    runs = RUNS_QUEUE in info.queues
    with (
        open_fleet_instance() as instance,
        publishing_to_redis(engine.url, worker_id=info.worker_id) as publisher,
    ):
        perform = RunWorker(engine, instance) if runs else StepWorker(engine, instance)
        perform.warm_up()
        worker = Worker(
            engine,
            info,
            perform.perform,
            slots=settings().run_slots if runs else 1,
            publish=None if publisher is None else publisher.publish,
        )
        if not runs:
            process_model_cache().on_change = lambda keys: worker.heartbeat.update(
                warm_models=_texts(keys)
            )
        worker.start()
        _serve(worker, info, settings().run_slots if runs else 1)
        worker.close()


def _texts(keys: tuple[ModelKey, ...]) -> list[str]:
    return [model_key_text(key) for key in keys]


def _serve(worker: Worker, info: WorkerInfo, slots: int) -> None:
    app = celery_app(open_engine().url)

    @app.task(name=RING)
    def ring() -> None:
        worker.wake()

    @worker_shutting_down.connect(weak=False)
    def drain(**_: object) -> None:
        worker.drain(settings().drain_grace_s)

    CeleryWorker(
        app=app,
        hostname=f"mloc@{info.worker_id}",
        queues=list(info.queues),
        pool="threads",
        concurrency=slots,
        without_gossip=True,
        without_mingle=True,
        without_heartbeat=True,
        quiet=True,
    ).start()
