"""Mixed submissions while processes are killed at random: does each end as it should, once?

    .venv/bin/python benchmarks/control_plane_chaos.py [--submissions 5000] [--seconds 300]
        [--seed 0] [--kill api,dispatcher,daemon,worker-1,worker-2,runs-1,redis] [--keep]

Prints what was killed, how the tasks ended, and each thing that is wrong; ends with 1 if any is.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx

_HERE = Path(__file__).parent
sys.path[:0] = [each for each in (str(_HERE), str(_HERE.parent)) if each not in sys.path]

from control_plane_checker import check, settle  # noqa: E402
from control_plane_stories import stories  # noqa: E402
from control_plane_users import Users  # noqa: E402

from mloc_dagster.fleet import connect  # noqa: E402
from tests.e2e.stack import Stack  # noqa: E402

VICTIMS = ("api", "dispatcher", "daemon", "worker-1", "worker-2", "runs-1", "redis")
ENVIRONMENT = {"MLOC_LEASE_TTL_S": "3", "MLOC_FLUSH_INTERVAL_S": "0.2"}
"""So that little time is spent on waiting for what was lost."""


@dataclass(frozen=True, slots=True)
class Report:
    """What happened.

    Attributes:
        kills: How often each component was killed; `redis (emptied)` is one of its kinds.
        states: How many tasks ended how.
        answers: How many submissions were answered how.
        wrong: What should not be; empty when all is well.
        seconds: From the first submission to the last task's end.
    """

    kills: dict[str, int]
    states: dict[str, int]
    answers: dict[str, int]
    wrong: Sequence[str]
    seconds: float


class Killer:
    """A thread that kills components of a stack for some time.

    Args:
        stack: The stack; its supervisor starts again what is killed.
        victims: Components.
        seed: Of the choice.
        pause_s: Seconds between two kills, on average.
        seconds: How long it goes on.
    """

    def __init__(
        self, stack: Stack, victims: Sequence[str], seed: int, *, pause_s: float, seconds: float
    ) -> None:
        self._stack = stack
        self._victims = victims
        self._rng = random.Random(seed)
        self._pause_s = pause_s
        self._seconds = seconds
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.kills: Counter[str] = Counter()

    def start(self) -> None:
        """Begins."""
        self._thread.start()

    def stop(self) -> None:
        """Ends, and waits for it."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        end = time.monotonic() + self._seconds
        while not self._stop.wait(self._rng.uniform(0.2, 1.8) * self._pause_s):
            if time.monotonic() > end:
                return
            name = self._rng.choice(self._victims)
            state = self._stack.component(name)
            if state.state != "RUNNING" or state.pid is None:
                continue
            shown = name
            if name == "redis" and self._rng.random() < 0.5 and self._empty_redis():
                shown = "redis (emptied)"
            try:
                self._stack.kill(name)
            except (ProcessLookupError, AssertionError):
                continue  # it was on its way down already
            self.kills[shown] += 1

    def _empty_redis(self) -> bool:
        try:
            with connect(self._stack.redis_url) as client:
                client.flushall()
        except OSError:
            return False
        return True


def run_chaos(
    stack: Stack,
    *,
    submissions: int,
    seconds: float,
    seed: int,
    victims: Sequence[str] = VICTIMS,
    pause_s: float = 2.0,
    settle_s: float = 120.0,
) -> Report:
    """Submits to a running stack and kills its parts meanwhile; checks what is left.

    Args:
        stack: With the API and two workers.
        submissions: How many.
        seconds: Over which time they come.
        seed: Of all that is random.
        victims: What is killed.
        pause_s: Seconds between two kills, on average.
        settle_s: Seconds after the last kill in which nothing ends, and it is taken for stuck.
    """
    run = f"chaos-{seed}-{time.time_ns()}"
    url = f"http://127.0.0.1:{stack.api_port}"
    all_stories = stories(submissions, seed)
    # What is retried late may go on in peace: killed every other second, nothing would end.
    killer = Killer(stack, victims, seed, pause_s=pause_s, seconds=1.3 * seconds)
    users = Users(url, run, seed)
    began = time.monotonic()
    killer.start()
    try:
        users.play(all_stories, seconds)
    finally:
        killer.stop()
        users.close()
    with httpx.Client(base_url=url, timeout=30, trust_env=False) as api:
        tasks = settle(api, run, settle_s)
    ended = time.monotonic()
    wrong = check(all_stories, tasks, Path(stack.environment["MLOC_RESULTS_URL"]))
    return Report(
        kills=dict(sorted(killer.kills.items())),
        states=dict(Counter(each["status"] for each in tasks)),
        answers=dict(Counter(each.answer for each in all_stories)),
        wrong=wrong,
        seconds=round(ended - began, 1),
    )


def main() -> None:
    """Runs it on a stack of its own."""
    parser = argparse.ArgumentParser(description="Kills processes while tasks are submitted.")
    parser.add_argument("--submissions", type=int, default=5_000)
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pause", type=float, default=3.0, help="seconds between two kills")
    parser.add_argument(
        "--settle", type=float, default=300.0, help="seconds of standstill that are too many"
    )
    parser.add_argument("--kill", default=",".join(VICTIMS), help="components; also postgres")
    parser.add_argument("--keep", action="store_true", help="leave the home there")
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="mloc-"))
    folder.chmod(0o755)  # the embedded PostgreSQL runs as another user when this one is root
    options = {"workers": 2, "run_workers": 1, "api": True, "environment": ENVIRONMENT}
    with Stack(folder / "home", **options) as stack:
        report = run_chaos(
            stack,
            submissions=given.submissions,
            seconds=given.seconds,
            seed=given.seed,
            victims=given.kill.split(","),
            pause_s=given.pause,
            settle_s=given.settle,
        )
    print(json.dumps({name: getattr(report, name) for name in Report.__slots__}, indent=2))
    if given.keep:
        print(f"home: {folder / 'home'}")
    else:
        shutil.rmtree(folder)
    sys.exit(1 if report.wrong else 0)


if __name__ == "__main__":
    main()
