"""How long after it happened an event can be heard on Redis."""

from __future__ import annotations

import json
import math
import threading
import time
from datetime import datetime
from pathlib import Path

import redis
from fleet_options import Options
from fleet_stack import FleetStack
from fleet_templates import write_echo

CHANNEL = "tasks.events"
_LAST_WORDS_S = 10.0


def measure(options: Options, folder: Path, library: Path) -> dict[str, object]:
    """Returns the lags of events that workers publish and of those that the sensor publishes."""
    job = write_echo(library, "told", rows=8)
    with FleetStack(folder, library, workers=options.workers) as stack:
        stack.client.run(job)
        ear = _Ear(stack.plan.redis_url)
        until = time.monotonic() + options.window_s
        run_ids: list[str] = []
        while time.monotonic() < until:
            run_ids.append(stack.client.create(job))
            stack.client.submit(run_ids[-1])
            time.sleep(1 / options.rate)
        stack.client.wait(run_ids)
        time.sleep(_LAST_WORDS_S)
        lags = ear.close()
    return {
        "runs": len(run_ids),
        "lag_s": {who: _summary(each) for who, each in lags.items()},
        "note": "worker: events with a worker_id; sensor: the others",
    }


def _summary(lags: list[float]) -> dict[str, float]:
    ordered = sorted(lags)
    return {
        "events": len(ordered),
        "p50": round(_quantile(ordered, 0.5), 3),
        "p95": round(_quantile(ordered, 0.95), 3),
        "max": round(ordered[-1], 3),
    }


def _quantile(ordered: list[float], share: float) -> float:
    """Returns the nearest-rank quantile."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


class _Ear:
    """Listens on the channel, and notes how old each event is when it arrives."""

    def __init__(self, url: str) -> None:
        self._lags: dict[str, list[float]] = {"worker": [], "sensor": []}
        self._client = redis.Redis.from_url(url, decode_responses=True)
        self._subscription = self._client.pubsub(ignore_subscribe_messages=True)
        self._subscription.subscribe(CHANNEL)
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        while not self._closing.is_set():
            message = self._subscription.get_message(timeout=0.5)
            if message is None:
                continue
            event = json.loads(message["data"])
            lag = time.time() - datetime.fromisoformat(event["ts"]).timestamp()
            self._lags["worker" if event.get("worker_id") else "sensor"].append(lag)

    def close(self) -> dict[str, list[float]]:
        """Stops listening; returns the lags by who published."""
        self._closing.set()
        self._thread.join()
        self._subscription.close()
        self._client.close()
        return self._lags
