"""The IO manager: steps exchange references as JSON beside the results, never rows."""

from __future__ import annotations

import json

import dagster as dg
from dagster import DagsterRun
from pydantic import BaseModel, ConfigDict

from mloc_dagster.executors import ShardReport
from mloc_dagster.planning import Shard
from mloc_dagster.results import Folder, open_store


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


_TYPES: dict[str, type[BaseModel]] = {each.__name__: each for each in (Shard, ShardReport, TaskRef)}


class ReferenceIOManager(dg.IOManager):
    """Keeps what steps hand on under `<results>/.dagster/<run id>/`.

    An asset is kept once for its run and once as the latest. A step reads the asset of its own
    run (or of the run that it retries), and the latest one only when its run did not make it:
    two runs of one job at the same time never see each other's results.
    """

    def handle_output(self, context: dg.OutputContext, obj: BaseModel) -> None:
        """Writes `obj`; of an asset also as the latest."""
        data = json.dumps({"type": type(obj).__name__, "value": obj.model_dump(mode="json")})
        folder = _folder()
        if context.has_asset_key:
            name = _asset_name(context.asset_key)
            folder.write_bytes(f"{context.run_id}/{name}", data.encode())
            folder.write_bytes(f"latest/{name}", data.encode())
        else:
            folder.write_bytes(_step_name(context), data.encode())

    def load_input(self, context: dg.InputContext) -> BaseModel:
        """Reads what an upstream step wrote.

        Raises:
            dagster.Failure: If an asset was never materialized.
        """
        folder = _folder()
        if not context.has_asset_key:
            upstream = context.upstream_output
            if upstream is None:
                raise dg.Failure("this input comes from no step", allow_retries=False)
            return _decode(folder.read_bytes(_step_name(upstream)))
        name = _asset_name(context.asset_key)
        for place in (*_runs_to_look_in(context), "latest"):
            if folder.exists(f"{place}/{name}"):
                return _decode(folder.read_bytes(f"{place}/{name}"))
        raise dg.Failure(
            f"asset {context.asset_key.to_user_string()} was never materialized: materialize it"
            " first, or select it too",
            allow_retries=False,
        )


@dg.io_manager(description="References to tasks and shards, as JSON next to the results.")
def reference_io_manager() -> ReferenceIOManager:
    """The IO manager of every mloc job."""
    return ReferenceIOManager()


def _folder() -> Folder:
    return open_store().folder(".dagster")


def _asset_name(key: dg.AssetKey) -> str:
    return f"assets/{'/'.join(key.path)}.json"


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
