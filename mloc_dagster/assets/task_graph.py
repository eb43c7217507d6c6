"""The graph behind a responses asset: plan → run_shard × N → aggregate."""

import inspect
import json

import dagster as dg

from mloc_dagster.assets.names import node_name, op_name
from mloc_dagster.assets.overrides import TaskOverrides, override_mapping
from mloc_dagster.assets.shard_step import shard_invocation
from mloc_dagster.compile.compiler import CompiledTask, CompiledTemplate
from mloc_dagster.ops.aggregate import aggregate_op
from mloc_dagster.ops.plan import plan_op


def task_graph(compiled: CompiledTemplate, node: CompiledTask) -> dg.GraphDefinition:
    """Builds the graph of one task; its inputs are `in_<node>` for each node it depends on."""
    inputs = {f"in_{op_name(each)}": dg.GraphIn() for each in node.task.depends_on}

    def compose(**upstream: object) -> object:
        plan = plan_op(len(upstream)).alias("plan")
        shards = plan(**{f"upstream_{i}": each for i, each in enumerate(upstream.values())})
        return aggregate_op(shards.map(shard_invocation(node.task.spec)).collect())

    # Dagster reads a graph's inputs off the function's signature.
    compose.__signature__ = _signature(list(inputs))  # type: ignore[attr-defined]
    return dg.graph(
        name=node_name(compiled, node.task.name),
        description=f"Runs the task {node.task.name!r} of {compiled.metadata.name!r} in shards.",
        ins=inputs,
        out=dg.GraphOut(),
        config=_config_mapping(compiled, node),
    )(compose)


def _config_mapping(compiled: CompiledTemplate, node: CompiledTask) -> dg.ConfigMapping:
    document = json.dumps(compiled.document)

    @dg.config_mapping
    def overrides_to_ops(overrides: TaskOverrides) -> dict[str, object]:
        config = {
            "template": document,
            "node": node.task.name,
            "overrides": override_mapping(overrides),
        }
        return {"plan": {"config": config}}

    return overrides_to_ops


def _signature(names: list[str]) -> inspect.Signature:
    parameters = [
        inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in names
    ]
    return inspect.Signature(parameters)
