"""Trajectories of a task: what each row's journal says, beside the row itself."""

from __future__ import annotations

from collections.abc import Iterator

from mloc_dagster.planning import Shard
from mloc_dagster.results.journal import Steps, journal_steps
from mloc_dagster.results.part_files import read_rows
from mloc_dagster.results.record import read_plan
from mloc_dagster.results.rows import OutputRow
from mloc_dagster.results.store import Folder


def read_trajectories(folder: Folder) -> Iterator[tuple[OutputRow, Steps]]:
    """Yields the finished rows of a task in order of index, each with its steps."""
    plan = read_plan(folder)
    shards = () if plan is None else plan.shards
    known: dict[int, Steps] = {}
    shard: Shard | None = None
    for row in read_rows(folder):
        found = next((each for each in shards if each.start <= _place(row) < each.stop), None)
        if found is not shard and found is not None:
            known, shard = journal_steps(folder, found), found
        yield row, known.get(row.index, Steps())


def find_trajectory(folder: Folder, index: int) -> tuple[OutputRow | None, Steps] | None:
    """Returns one row's trajectory, finished or not; None where nothing is known of it."""
    plan = read_plan(folder)
    shards = () if plan is None else plan.shards
    row = next((each for each in read_rows(folder, index, index + 1)), None)
    if row is not None:
        shards = [each for each in shards if each.start <= _place(row) < each.stop]
    for shard in shards:
        steps = journal_steps(folder, shard).get(index)
        if steps is not None:
            return row, steps
    return None if row is None else (row, Steps())


def _place(row: OutputRow) -> int:
    return row.index if row.place < 0 else row.place
