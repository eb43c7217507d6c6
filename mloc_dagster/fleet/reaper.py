"""Putting back the runs whose run worker fell silent."""

from __future__ import annotations

import logging

from mloc_dagster.fleet.engine import StepTicket, TicketState
from mloc_dagster.fleet.records import running_key
from mloc_dagster.fleet.redis_engine import RedisFleetEngine

_log = logging.getLogger(__name__)


def requeue_lapsed(engine: RedisFleetEngine, queue: str) -> None:
    """Queues the running tickets of a queue anew whose lease has lapsed.

    Only runs need this: a shard's ticket is looked after by its run.
    """
    running = {str(each) for each in engine.client.smembers(running_key(queue))}  # type: ignore[union-attr]
    if not running:
        return
    for ticket_id, status in engine.status(running).items():
        if status.state is not TicketState.LOST:
            continue
        if status.worker_id is None:
            engine.client.srem(running_key(queue), ticket_id)
            continue
        _log.warning("%s: %s; it goes to another worker", ticket_id, status.why)
        run_id = ticket_id.partition(":")[0]
        engine.submit(StepTicket(ticket_id=ticket_id, run_id=run_id, queue=queue))
