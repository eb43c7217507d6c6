"""The IO manager: steps exchange references as JSON beside the results; other assets read rows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, get_origin
from urllib.parse import quote

import dagster as dg
from dagster import DagsterRun
from pydantic import BaseModel, ConfigDict

from mloc_dagster.executors import ShardReport
from mloc_dagster.planning import Shard
from mloc_dagster.results import TRAINING_NAME, Folder, open_store, read_tables, read_training


class TaskRef(BaseModel):
    """Points to a task's folder.

    Attributes:
        task_id: The task, which names its folder below the results root.
        node: The stage or node it ran for.
        rows: Rows of its result.
    """

    model_config = ConfigDict(frozen=True)

    task_id: str
    node: str
    rows: int


class AggregatedTask(TaskRef):
    """A task whose result is complete, and not yet judged.

    Attributes:
        shard_seconds: What computing each shard took, loading aside; None for one that was not
            computed in one go: what its last attempt took says nothing.
    """

    shard_seconds: tuple[float | None, ...]

    def ref(self) -> TaskRef:
        """Returns what later tasks are handed."""
        return TaskRef(task_id=self.task_id, node=self.node, rows=self.rows)


REFERENCE = "mloc/reference"
"""On an input's metadata: it takes a reference, whatever its type."""

IO_MANAGER_KEY = "mloc_io_manager"
"""Its resource key: a project's own `io_manager` stays its own."""

_TYPES: dict[str, type[BaseModel]] = {
    each.__name__: each for each in (Shard, ShardReport, TaskRef, AggregatedTask)
}


class MlocIOManager(dg.IOManager):
    """Keeps what steps hand on under `<results>/.dagster/<run id>/`; hands rows to other assets.

    An asset is kept once for its run and once as the latest, each partition by itself. A step reads
    the asset of its own run (or of the run that it retries), and the latest one only when its run
    did not make it: two runs of one job at the same time never see each other's results.

    What an asset that is not mloc's is handed depends on the type of its argument: rows as
    `pyarrow.Table` (the default), `pandas.DataFrame`, `polars.DataFrame` or `list`; of a training
    the folder of the final weights, as `str`. `dict[str, T]` is handed a T for each partition.
    """

    def handle_output(self, context: dg.OutputContext, obj: BaseModel) -> None:
        """Writes `obj`; of an asset also as the latest."""
        data = json.dumps({"type": type(obj).__name__, "value": obj.model_dump(mode="json")})
        folder = _folder()
        if not context.has_asset_key:
            folder.write_bytes(_step_name(context), data.encode())
            return
        partitions = context.asset_partition_keys if context.has_asset_partitions else [None]
        for each in partitions:
            name = _asset_name(context.asset_key, each)
            folder.write_bytes(f"{context.run_id}/{name}", data.encode())
            folder.write_bytes(f"latest/{name}", data.encode())

    def load_input(self, context: dg.InputContext) -> object:
        """Reads what an upstream step wrote, as the type of the input asks for.

        Raises:
            dagster.Failure: If an asset was never materialized, or cannot be had as this type.
        """
        if not context.has_asset_key:
            upstream = context.upstream_output
            if upstream is None:
                raise dg.Failure("this input comes from no step", allow_retries=False)
            return _decode(_folder().read_bytes(_step_name(upstream)))
        by_reference = REFERENCE in (context.definition_metadata or {})
        wanted = TaskRef if by_reference else context.dagster_type.typing_type
        if not context.has_asset_partitions:
            return _as_type(_asset(context, None), wanted)
        partitions = {each: _asset(context, each) for each in context.asset_partition_keys}
        if get_origin(wanted) is dict:
            each_as = getattr(wanted, "__args__", (str, Any))[1]
            return {key: _as_type(found, each_as) for key, found in partitions.items()}
        return _as_type(list(partitions.values()), wanted)


@dg.io_manager(description="References to tasks and shards, as JSON next to the results; rows.")
def mloc_io_manager() -> MlocIOManager:
    """The IO manager of mloc's assets and of the steps behind them."""
    return MlocIOManager()


def _folder() -> Folder:
    return open_store().folder(".dagster")


def _asset(context: dg.InputContext, partition: str | None) -> BaseModel:
    folder, name = _folder(), _asset_name(context.asset_key, partition)
    for place in (*_runs_to_look_in(context), "latest"):
        if folder.exists(f"{place}/{name}"):
            return _decode(folder.read_bytes(f"{place}/{name}"))
    shown = context.asset_key.to_user_string() + ("" if partition is None else f", {partition}")
    raise dg.Failure(
        f"asset {shown} was never materialized: materialize it first, or select it too",
        allow_retries=False,
    )


def _asset_name(key: dg.AssetKey, partition: str | None) -> str:
    name = f"assets/{'/'.join(key.path)}"
    return f"{name}.json" if partition is None else f"{name}/{quote(partition, safe='')}.json"


def _step_name(context: dg.OutputContext) -> str:
    run_id, *place = context.get_identifier()
    return f"{run_id}/steps/{'/'.join(place)}.json"


def _runs_to_look_in(context: dg.InputContext) -> list[str]:
    run: DagsterRun | None = context.step_context.dagster_run
    found: list[str] = []
    while run is not None:
        found.append(run.run_id)
        run = context.instance.get_run_by_id(run.parent_run_id) if run.parent_run_id else None
    return found


def _decode(data: bytes) -> BaseModel:
    document = json.loads(data)
    return _TYPES[document["type"]].model_validate(document["value"])


def _as_type(found: BaseModel | Sequence[BaseModel], wanted: object) -> object:
    """Returns one reference, or those of several partitions, as an input's type asks for."""
    refs = [found] if isinstance(found, BaseModel) else list(found)
    if isinstance(wanted, type) and issubclass(wanted, BaseModel):
        return refs[0]
    tasks = [each for each in refs if isinstance(each, TaskRef)]
    folders = [open_store().task(each.task_id) for each in tasks]
    weights = [_weights(each) for each in folders]
    if any(weights):
        if len(weights) > 1:
            raise dg.Failure(
                "several partitions of a training: ask for dict[str, str]", allow_retries=False
            )
        return weights[0]
    return _rows(folders, wanted)


def _weights(folder: Folder) -> str:
    """Returns where the final weights of a training lie; nothing of another task."""
    if not folder.exists(TRAINING_NAME):
        return ""
    final = read_training(folder).final
    return f"{folder.url}/{final}" if final else ""


def _rows(folders: Sequence[Folder], wanted: object) -> object:
    import pyarrow as pa  # pyright: ignore[reportMissingTypeStubs]

    arrow: Any = pa
    tables = [table for folder in folders for table in read_tables(folder)]
    table = arrow.concat_tables(tables, promote_options="default")
    name = f"{getattr(wanted, '__module__', '')}.{getattr(wanted, '__qualname__', '')}"
    if wanted is Any or isinstance(table, wanted if isinstance(wanted, type) else ()):
        return table
    if (get_origin(wanted) or wanted) in (list, Sequence):
        return table.to_pylist()
    if name.startswith("pandas."):
        return table.to_pandas()
    if name.startswith("polars."):
        import polars as pl

        return pl.from_arrow(table)
    raise dg.Failure(
        f"rows cannot be had as {name}: annotate pyarrow.Table, pandas.DataFrame, "
        "polars.DataFrame or list",
        allow_retries=False,
    )
