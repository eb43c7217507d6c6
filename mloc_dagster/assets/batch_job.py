"""Small tasks that share a run, as Dagster sees them: one job, one asset."""

import dagster as dg

from mloc_dagster.fleet.dagster.executor import execution_config
from mloc_dagster.fleet.dagster.tickets import fleet_tags
from mloc_dagster.fleet.hardware import Requirements
from mloc_dagster.ops.batch import BatchConfig, batch_shard, hand_out, plan_batch
from mloc_dagster.schema.resources import Retries

JOB = "small_tasks"
"""The job that carries batches."""

# Not the job's name: Dagster keeps jobs, graphs and ops in one namespace.
_GRAPH = f"{JOB}__batch"


def batch_definitions() -> dg.Definitions:
    """Builds the job, and the asset with one materialization for each batch."""
    asset = dg.AssetsDefinition.from_graph(
        _graph(),
        keys_by_output_name={"result": dg.AssetKey([JOB])},
        group_name=JOB,
    ).map_asset_specs(
        lambda spec: spec.replace_attributes(
            description="Small tasks that came over the API and agree in model, engine and"
            " sampling, computed together. Each has results of its own.",
            kinds={"llm"},
        )
    )
    job = dg.define_asset_job(
        JOB,
        selection=dg.AssetSelection.assets(asset),
        description="A batch of small tasks; the API's dispatcher makes its runs.",
        config=execution_config(),
    )
    return dg.Definitions(assets=[asset], jobs=[job])


def batch_run_config(batch_id: str) -> dict[str, object]:
    """Returns the run config of a batch's run."""
    return {**execution_config(), "ops": {_GRAPH: {"config": {"batch_id": batch_id}}}}


def _graph() -> dg.GraphDefinition:
    # What a batch needs of its worker is known when it runs: its run's tags say so.
    tags = fleet_tags(Requirements(), None, Retries())

    @dg.config_mapping
    def batch_to_ops(batch: BatchConfig) -> dict[str, object]:
        config = {"config": {"batch_id": batch.batch_id}}
        return {"plan": config, "hand_out": config}

    @dg.graph(
        name=_GRAPH,
        description="Computes small tasks together, in shards, and gives each its results.",
        config=batch_to_ops,
    )
    def small_tasks() -> object:
        shards = plan_batch.alias("plan")()
        return hand_out.alias("hand_out")(
            shards.map(batch_shard.alias("run_shard").tag(tags)).collect()
        )

    return small_tasks
