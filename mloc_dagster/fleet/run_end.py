"""Ending a run that no run worker is at any more."""

from __future__ import annotations

import dagster as dg
from dagster import DagsterRun

from mloc_dagster.fleet.redis_engine import RedisFleetEngine


def end_cancelled_run(
    instance: dg.DagsterInstance, engine: RedisFleetEngine, run: DagsterRun
) -> None:
    """Stops the shards of a run that was cancelled while nobody ran it, and says so."""
    engine.cancel_run(run.run_id)
    leave_pools(instance, run.run_id)
    instance.report_run_canceled(run, "Cancelled; no run worker was at it.")


def leave_pools(instance: dg.DagsterInstance, run_id: str) -> None:
    """Frees what a cancelled run holds of pools: Dagster frees a slot when its step ends only."""
    instance.event_log_storage.free_concurrency_slots_for_run(run_id)
