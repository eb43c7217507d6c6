"""Tasks as the viewer finds them: folders with rows, made without running anything."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mloc_dagster.data import spool_input
from mloc_dagster.results import (
    Folder,
    OutputRow,
    ResultStore,
    ShardWriter,
    TaskRecord,
    aggregate_rows,
    export_results,
    write_manifest,
    write_record,
)
from mloc_dagster.schema import DatasetData, RowEvaluation

Row = Mapping[str, object]


def make_task(
    store: ResultStore,
    task_id: str,
    inputs: Sequence[Row],
    outputs: Sequence[OutputRow],
    *,
    evaluation: RowEvaluation | None = None,
    shards: int = 1,
    done: bool = True,
    vectors: bool = False,
    leaves: tuple[str, ...] = (),
    template: Mapping[str, Any] | None = None,
) -> Folder:
    """Makes the folder of a task.

    Args:
        store: Where.
        task_id: Its id.
        inputs: Its rows; `question` is the prompt.
        outputs: What became of them; of a task that runs still, of the first ones.
        evaluation: How they are scored.
        shards: How many shards there are.
        done: Whether it is done.
        vectors: Whether it is an embedding task.
        leaves: Columns that its rows have beside those of all tasks.
        template: What it is a task of.
    """
    folder = store.task(task_id)
    spec = {} if evaluation is None else {"evaluation": evaluation.model_dump(mode="json")}
    record = TaskRecord(
        task_id=task_id,
        workflow_id=task_id,
        run_id="run",
        template=dict(template or {}),
        template_name="made",
        node="made",
        task_type="echo",
        spec=spec,
        submitted_at=datetime.now(UTC),
        mloc_version="0",
    )
    write_record(folder, record)
    with tempfile.TemporaryDirectory(prefix="mloc-") as name:
        source = Path(name) / "rows.jsonl"
        source.write_text("\n".join(map(json.dumps, inputs)))
        data = DatasetData(type="dataset", url=str(source), column="question")
        plan = spool_input(task_id, data, folder, shards, 7, {}, evaluation=evaluation)
    for shard in plan.shards:
        with ShardWriter(
            folder, shard, 1, flush_rows=64, flush_interval_s=60, began=datetime.now(UTC)
        ) as writer:
            for row in outputs:
                if shard.start <= row.index < shard.stop:
                    writer.write(row)
    if done:
        aggregate_rows(
            folder,
            plan,
            model="made",
            worker_id="w",
            started_at=datetime.now(UTC),
            error_budget=1.0,
            evaluation=evaluation,
        )
        export_results(
            folder, plan, ["json", "parquet"], model="made", vectors=vectors, leaves=leaves
        )
        write_manifest(folder, ["responses.json"])
    return folder
