"""How soon tasks that nobody has begun are on their way again after everything was killed."""

from __future__ import annotations

import http.client
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

from control_plane_accept import readable, submit_many
from control_plane_options import Options
from control_plane_stack import OPEN, ControlPlane
from fleet_stack import until

_WAITING = ("WAITING", "PENDING")


def measure_restart(options: Options, folder: Path, library: Path) -> dict[str, Any]:
    """Returns seconds from the start of `mloc up`, after `kill -9` of every process.

    The dispatcher is held while tasks are accepted, so that none has a run when all is killed.
    """
    with ControlPlane(folder, library, workers=options.workers) as stack:
        stack.warm_up()
        with stack.dispatcher_paused():
            began = time.monotonic()
            ids = submit_many(stack, options.queued)
            accepted_s = time.monotonic() - began
            before = stack.counts()
            stack.kill()
        began = time.monotonic()
        starting = threading.Thread(target=stack.up)
        starting.start()
        seconds: dict[str, float] = {}
        _note(stack, ids, seconds, began)
        starting.join()
        seconds["up"] = time.monotonic() - began
        stack.drained()
        seconds["all_done"] = time.monotonic() - began
        return {
            "queued": len(ids),
            "accepted_per_s": round(len(ids) / accepted_s, 1),
            "pending_when_killed": before["PENDING"],
            "seconds_after_up_was_called": {
                name: round(each, 2) for name, each in sorted(seconds.items())
            },
            **readable(stack, ids),
        }


def _note(stack: ControlPlane, ids: list[str], seconds: dict[str, float], began: float) -> None:
    """Notes when the API knows all tasks, when the first has a run, and when all have."""
    enough = {
        "all_queued_again": lambda counts: counts.total() > len(ids),
        "first_dispatched": lambda counts: _begun(counts) > 1,
        "all_dispatched": lambda counts: _begun(counts) > len(ids),
    }

    def noted() -> bool:
        try:
            counts = stack.counts()
        except (OSError, http.client.HTTPException):
            return False  # not up yet
        for name, reached in enough.items():
            if name not in seconds and reached(counts):
                seconds[name] = time.monotonic() - began
        return seconds.keys() >= enough.keys()

    until(noted, "every task has a run", 600)


def _begun(counts: Counter[str]) -> int:
    """Counts tasks that have a run or have ended; the task that warmed up is one of them."""
    ended = counts.total() - sum(counts[each] for each in OPEN)
    return ended + sum(counts[each] for each in OPEN if each not in _WAITING)
