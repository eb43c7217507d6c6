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
    instance.report_run_canceled(run, "Cancelled; no run worker was at it.")
