"""Waiting for a run of the fleet to end, for a person at a terminal."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    import dagster as dg

_LOOK_EVERY_S = 0.3


def wait_for(instance: dg.DagsterInstance, run_id: str) -> dg.DagsterRunStatus:
    """Returns how a run ended; Ctrl-C ends the waiting and not the run."""
    try:
        while True:
            run = instance.get_run_by_id(run_id)
            if run is not None and run.is_finished:
                return run.status
            time.sleep(_LOOK_EVERY_S)
    except KeyboardInterrupt:
        typer.echo(f"run {run_id} goes on; `mloc cancel {run_id}` stops it", err=True)
        raise
