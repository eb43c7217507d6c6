"""How far a task is, as its results folder says."""

from __future__ import annotations

from collections.abc import Collection

from mloc_dagster.errors import DamagedFileError
from mloc_dagster.executors.shard_log import shard_log_name
from mloc_dagster.planning.plan import Plan
from mloc_dagster.planning.shards import Shard
from mloc_dagster.results.plan_file import read_plan
from mloc_dagster.results.shard_files import finished_rows
from mloc_dagster.results.store import Folder
from mloc_dagster.results.summary import SUMMARY_NAME, TaskSummary


def plan_of(folder: Folder) -> Plan | None:
    """Returns a task's plan; None before its input was read, and where it is damaged.

    What is known of a task without its plan is shown all the same; running the task says the rest.
    """
    try:
        return read_plan(folder)
    except DamagedFileError:
        return None


def summary_of(folder: Folder) -> TaskSummary | None:
    """Returns a task's summary; None before it was aggregated."""
    try:
        return TaskSummary.model_validate_json(folder.read_bytes(SUMMARY_NAME))
    except FileNotFoundError:
        return None


def rows_finished(folder: Folder, plan: Plan, complete: Collection[int]) -> int:
    """Returns how many rows a task has.

    Args:
        folder: The task's folder.
        plan: Its plan.
        complete: Shards whose rows are all there, which are not read for it.
    """
    return sum(
        shard.rows if shard.index in complete else finished_rows(folder, shard).count
        for shard in plan.shards
    )


def last_log_lines(folder: Folder, shard: Shard, count: int) -> tuple[str, ...]:
    """Returns the end of a shard's log."""
    try:
        text = folder.read_bytes(shard_log_name(shard)).decode()
    except FileNotFoundError:
        return ()
    return tuple(text.splitlines()[-count:])
