"""Templates with retrieval, run in this process: the jobs of `mloc run`, in a home of their own."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
import psutil
from fleet_cpu import tree_s

from mloc_dagster.compile import compile_mapping
from mloc_dagster.home import postmaster, stack_layout
from mloc_dagster.local_run import run_template
from mloc_dagster.results import Folder, open_store
from mloc_dagster.services import open_instance
from mloc_dagster.settings import settings

WHOLE = {"by": "characters", "size": 100_000, "overlap": 0}
"""Chunks that are whole documents, so that other libraries index the same texts."""

TRUNCATED = {"truncate": True}
"""MiniLM reads 256 tokens; sentence-transformers cuts longer texts without being asked."""


@dataclass(frozen=True, slots=True)
class Took:
    """What something took.

    Attributes:
        seconds: Wall time.
        cpu_s: Processor time of this process and PostgreSQL.
    """

    seconds: float
    cpu_s: float


class Stopwatch:
    """Counts from its creation."""

    def __init__(self) -> None:
        self._began, self._cpu_s = time.perf_counter(), _cpu_seconds()

    def took(self) -> Took:
        """Returns what was taken so far."""
        return Took(time.perf_counter() - self._began, _cpu_seconds() - self._cpu_s)


@dataclass(frozen=True, slots=True)
class Done:
    """A task that is done.

    Attributes:
        folder: Its folder.
        result: What `responses.json` says of it.
        seconds: From its plan to its last file.
        shards_s: What its shards took.
    """

    folder: Folder
    result: Mapping[str, Any]
    seconds: float
    shards_s: float


class Templates:
    """Runs templates, one after the other.

    Args:
        instance: Records the runs.
    """

    def __init__(self, instance: dg.DagsterInstance) -> None:
        self._instance = instance

    def run(self, name: str, task_type: str = "rag", **spec: Any) -> dict[str, Done]:
        """Runs a template; returns its tasks by their names.

        Raises:
            SystemExit: If it fails, or one of its rows does.
        """
        document = {
            "apiVersion": "mloc/v1",
            "kind": {"rag": "RetrievalTask", "embedding": "EmbeddingTask"}[task_type],
            "metadata": {"name": name},
            "spec": {"taskType": task_type, "enforce_cpu": True, **spec},
        }
        outcome = run_template(compile_mapping(document), self._instance)
        if not outcome.succeeded:
            raise SystemExit("\n".join(outcome.problems(name)))
        steps = self._instance.get_run_step_stats(outcome.run_id)
        # Of a template with one task the graph is called so, and not by its name.
        called = "task" if len(outcome.tasks) == 1 else None
        return {
            each.node: _done(each.task_id, each.node, called or each.node, steps)
            for each in outcome.tasks
        }


@contextmanager
def templates_in(folder: Path) -> Generator[Templates]:
    """Gives what runs templates in a home of their own, with a PostgreSQL that ends with this."""
    os.environ["MLOC_HOME"] = str(folder / "home")
    os.environ["MLOC_RESULTS_URL"] = (folder / "results").as_uri()
    settings.cache_clear()
    with open_instance() as instance:
        yield Templates(instance)


def local_model(place: Path) -> dict[str, Any]:
    """Returns the `model` of a template for a folder with a model."""
    return {"source": {"type": "local", "identifier": str(place)}}


def _done(task_id: str, node: str, called: str, steps: Sequence[Any]) -> Done:
    folder = open_store().task(task_id)
    result = json.loads(folder.read_bytes("responses.json"))["result"]
    failed = [each["error"] for each in result["items"] if each.get("error")]
    if failed:
        raise SystemExit(f"{node}: {len(failed)} rows failed: {failed[0]}")
    mine = [each for each in steps if _step_node(each.step_key) == called.replace("-", "_")]
    shards = [each for each in mine if ".run_shard" in each.step_key]
    return Done(folder, result, _span(mine), _span(shards))


def _step_node(key: str) -> str:
    return key.partition(".")[0].rpartition("__")[2]


def _span(steps: Sequence[Any]) -> float:
    return max(each.end_time for each in steps) - min(each.start_time for each in steps)


def _cpu_seconds() -> float:
    layout = stack_layout()
    server = postmaster(layout.postgres)
    return tree_s(psutil.Process().pid) + (0.0 if server is None else _once(server))


def _once(server: psutil.Process) -> float:
    """Returns the time of a server that is not below this process, whose time has it already."""
    parents = {each.pid for each in server.parents()}
    return 0.0 if psutil.Process().pid in parents else tree_s(server.pid)
