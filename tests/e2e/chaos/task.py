"""A task on a running stack, launched and looked at from outside."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psycopg2
import pyarrow.parquet as pq

from mloc_dagster.events import BEGINNING, Channel, TaskEvent, open_redis, read_events
from tests.e2e.stack import Stack, until

JOB = "chaos"
SHARDS = 16
ROWS = 384
DELAY_S = 0.045
"""Per row: a shard takes 1.1 s, the task about nine on two workers."""

TEMPLATE = f"""\
apiVersion: mloc/v1
kind: EchoTask
metadata: {{name: {JOB}}}
spec:
  data:
    type: list
    items: [{", ".join(f"row number {number}" for number in range(ROWS))}]
  parallel: {{enabled: true, max_shards: {SHARDS}}}
  retries: {{max: 3, delay_s: 0}}
  echo: {{delay_s: {DELAY_S}}}
  output: {{formats: [json, parquet]}}
"""

# Where a row was computed, when and by whom; everything else of it must not depend on that.
_LINEAGE = ["task_id", "worker", "attempt", "latency_s"]

_REPOSITORY = {
    "repositoryLocationName": "mloc_dagster.definitions",
    "repositoryName": "__repository__",
}
_LAUNCH = """
mutation ($selector: JobOrPipelineSelector!) {
  launchRun(executionParams: {selector: $selector}) {
    ... on LaunchRunSuccess { run { runId } }
    ... on PythonError { message }
  }
}
"""

_TAKE_OUT = """
import sys
import dagster as dg
job, run_id = sys.argv[1:]
with dg.DagsterInstance.get() as instance:
    event = dg.DagsterEvent(event_type_value="PIPELINE_STARTING", job_name=job)
    instance.report_dagster_event(event, run_id=run_id)
"""

# A file each 0.2 s, of a shard that takes 1.1 s.
_PARTS_OF_HALF = 3


@dataclass(frozen=True, slots=True)
class Holding:
    """A shard that a worker has claimed.

    Attributes:
        shard: Its mapping key, `0003`.
        worker: Who holds it.
        fence: Which claim it is: another one of the same worker has another fence.
    """

    shard: str
    worker: str
    fence: str


class Task:
    """One run of the template.

    Args:
        stack: Where it runs.
        run_id: Its run, whose id is the task's as well.
        job: The template.
        shards: How many it has.
    """

    def __init__(self, stack: Stack, run_id: str, job: str, shards: int) -> None:
        self.stack = stack
        self.run_id = run_id
        self.job = job
        self.shards = shards

    @classmethod
    def launch(cls, stack: Stack, job: str = JOB, shards: int = SHARDS) -> Task:
        """Launches the job as a person at Dagster's UI would."""
        # Dagster's own client for this uses what its library has deprecated.
        with httpx.Client(trust_env=False, timeout=30) as client:
            asked = {"query": _LAUNCH, "variables": {"selector": {**_REPOSITORY, "jobName": job}}}

            def launched() -> str | None:
                answer = client.post(f"{stack.webserver_url}/graphql", json=asked).json()
                found = answer["data"]["launchRun"]
                # Where the code server was killed, the UI shows the job again a moment after it.
                return found["run"]["runId"] if "run" in found else None

            run_id = until(launched, "the UI launches the job", 60)
        assert run_id is not None
        return cls(stack, run_id, job, shards)

    # Redis

    def events(self) -> list[TaskEvent]:
        """What the event stream says of the task, in order."""
        with open_redis(self.stack.redis_url) as client:
            found = read_events(client, {Channel.TASKS: BEGINNING}, limit=100_000)
        events = [each.event for each in found]
        return [e for e in events if isinstance(e, TaskEvent) and e.run_id == self.run_id]

    def count(self, kind: str) -> int:
        """How many events of a type the stream has of the task."""
        return sum(each.type == kind for each in self.events())

    def requeued(self) -> set[str]:
        """The shards that were taken from a lost worker, as the event stream tells it."""
        moved = [each.shard for each in self.events() if each.type == "TASK_REQUEUED"]
        return {f"{each.index:04d}" for each in moved if each is not None}

    def holdings(self) -> list[Holding]:
        """The shards that are claimed now."""
        return [each for state, each in self._tickets() if state == "running"]

    def _tickets(self) -> list[tuple[str, Holding]]:
        with open_redis(self.stack.redis_url) as client:
            ids = [each.decode() for each in client.smembers(f"run:{self.run_id}:tickets")]
            found = [client.hmget(f"ticket:{each}", "state", "worker_id", "fence") for each in ids]
        texts = [[(field or b"").decode() for field in fields] for fields in found]
        return [
            (state, Holding(_shard_of(each), worker, fence))
            for each, (state, worker, fence) in zip(ids, texts, strict=True)
        ]

    def run_fence(self) -> str:
        """Which claim of a run worker the run is under; empty when there is none."""
        with open_redis(self.stack.redis_url) as client:
            key = f"ticket:{self.run_id}:run"
            state, fence = (each or b"" for each in client.hmget(key, "state", "fence"))
        return fence.decode() if state == b"running" else ""

    # PostgreSQL

    def status(self) -> str:
        """The status of the run."""
        with self._cursor() as cursor:
            cursor.execute("SELECT status FROM runs WHERE run_id = %s", (self.run_id,))
            return cursor.fetchone()[0]

    def take_out(self) -> None:
        """Writes what the daemon writes before it asks the fleet to run what waited."""
        subprocess.run(
            [sys.executable, "-c", _TAKE_OUT, self.job, self.run_id],
            env={**self.stack.environment, "DAGSTER_HOME": str(self.stack.layout.dagster_home)},
            check=True,
        )

    def logged(self, kind: str) -> list[tuple[str, int]]:
        """Entries of a type in Dagster's log: the shard, and the process that said it."""
        with self._cursor() as cursor:
            cursor.execute(
                "SELECT step_key, (event::json -> 'dagster_event' ->> 'pid')::int FROM event_logs"
                " WHERE run_id = %s AND dagster_event_type = %s ORDER BY id",
                (self.run_id, kind),
            )
            found = cursor.fetchall()
        return [
            (_shard_of(key), pid)
            for key, pid in found
            if key.startswith(f"{self.job}__task.run_shard")
        ]

    def wait_more(self, before: int, timeout_s: float = 300.0) -> None:
        """Waits until Dagster's log, which may be away meanwhile, has more than `before` shards."""

        def more() -> bool:
            try:
                return len(self.logged("STEP_SUCCESS")) > before
            except psycopg2.OperationalError:
                return False

        until(more, "one more shard done", timeout_s)

    @contextmanager
    def _cursor(self) -> Iterator[psycopg2.extensions.cursor]:
        connection = psycopg2.connect(self.stack.postgres_url, connect_timeout=5)
        try:
            with connection, connection.cursor() as cursor:
                yield cursor
        finally:
            connection.close()

    # Results

    @property
    def folder(self) -> Path:
        """The task's results."""
        return self.stack.layout.home / "results" / self.run_id

    def parts(self, shard: str) -> int:
        """How many files of finished rows a shard has."""
        return len(list((self.folder / "shards" / shard).glob("part-*.jsonl")))

    def rows(self) -> list[dict[str, object]]:
        """The exported rows, without their lineage."""
        return pq.read_table(self.folder / "responses.parquet").drop_columns(_LINEAGE).to_pylist()

    # Waiting

    def wait_done(self, shards: int, timeout_s: float = 300.0) -> None:
        """Waits until so many shards are done."""
        until(lambda: self.count("SHARD_SUCCEEDED") >= shards, f"{shards} shards done", timeout_s)

    def wait_held(self, *workers: str) -> list[Holding]:
        """Waits until each of the workers is in the first half of a shard; returns these."""

        def held() -> list[Holding]:
            busy = [each for each in self.holdings() if each.worker in workers]
            busy = [each for each in busy if 0 < self.parts(each.shard) <= _PARTS_OF_HALF]
            return busy if {each.worker for each in busy} == set(workers) else []

        return until(held, f"{', '.join(workers)} in the middle of a shard")

    def wait_reclaimed(self, lost: Holding, timeout_s: float = 300.0) -> Holding:
        """Waits until a lost shard has been claimed anew; returns that claim."""

        def again() -> Holding | None:
            tickets = {each.shard: each for _, each in self._tickets()}
            return tickets[lost.shard] if tickets[lost.shard].fence != lost.fence else None

        claim = until(again, f"shard {lost.shard} claimed anew", timeout_s)
        assert claim is not None
        return claim

    def wait_ended(self, shard: str) -> None:
        """Waits until some worker has done a shard."""
        ended = lambda: shard in dict(self.logged("STEP_SUCCESS"))  # noqa: E731
        until(ended, f"shard {shard} done")

    def wait_success(self, timeout_s: float = 300.0) -> None:
        """Waits until the run has ended; asserts that it ended well."""
        until(lambda: self.status() in ("SUCCESS", "FAILURE", "CANCELED"), "the end", timeout_s)
        assert self.status() == "SUCCESS"


def _shard_of(text: str) -> str:
    """Returns `0003` for `…run_shard[0003]` and `…run_shard[0003]:1`; else an empty text."""
    return text.rpartition("[")[2].partition("]")[0] if "[" in text else ""
