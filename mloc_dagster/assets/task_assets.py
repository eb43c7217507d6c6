"""The assets of one task: its responses or checkpoint, their checks, their export."""

import re

import dagster as dg

from mloc_dagster.assets.names import asset_key, op_name
from mloc_dagster.assets.row_checks import row_checks
from mloc_dagster.assets.task_graph import task_graph
from mloc_dagster.assets.training_checks import training_checks
from mloc_dagster.compile.compiler import CompiledTask, CompiledTemplate
from mloc_dagster.ops.export import export
from mloc_dagster.ops.references import TaskRef
from mloc_dagster.schema.task import ModelSpec, TrainingSpec

_EMAIL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._%+-]*@[A-Za-z0-9.-]+\.[A-Za-z]{2,7}")

_TAG_LENGTH = 63
"""Of the name and of the value of a tag of Dagster's, at most."""


def task_assets(
    compiled: CompiledTemplate, node: CompiledTask
) -> list[dg.AssetsDefinition | dg.AssetChecksDefinition]:
    """Builds the assets and checks of one task of a template."""
    trains = isinstance(node.task.spec, TrainingSpec)
    return [
        _result(compiled, node),
        training_checks(compiled, node) if trains else row_checks(compiled, node),
        _export(compiled, node),
    ]


def result_key(compiled: CompiledTemplate, node: CompiledTask) -> dg.AssetKey:
    """Returns the key of what a task computes: `checkpoint` of a training, else `responses`."""
    trains = isinstance(node.task.spec, TrainingSpec)
    return asset_key(compiled, node.task.name, "checkpoint" if trains else "responses")


def _result(compiled: CompiledTemplate, node: CompiledTask) -> dg.AssetsDefinition:
    graph = task_graph(compiled, node)
    assets = dg.AssetsDefinition.from_graph(
        graph,
        keys_by_input_name={
            f"in_{op_name(each)}": asset_key(compiled, each, "export")
            for each in node.task.depends_on
        },
        keys_by_output_name={"result": result_key(compiled, node)},
        group_name=op_name(compiled.metadata.name),
    )
    return assets.map_asset_specs(
        lambda spec: spec.replace_attributes(
            description=_description(compiled, node),
            kinds=_kinds(node),
            owners=_owners(compiled),
            tags=_tags(compiled, node),
        )
    )


def _export(compiled: CompiledTemplate, node: CompiledTask) -> dg.AssetsDefinition:
    key = asset_key(compiled, node.task.name, "export")
    spec = node.task.spec
    trains = isinstance(spec, TrainingSpec)
    formats = (
        "responses.json"
        if trains
        else ", ".join(f"responses.{each}" for each in spec.output.formats)
    )

    @dg.asset(
        key=key,
        ins={"responses": dg.AssetIn(result_key(compiled, node))},
        group_name=op_name(compiled.metadata.name),
        description=f"The result as files: {formats}, and a manifest with their sha256.",
        kinds={"json"} if trains else {each for each in spec.output.formats if each != "jsonl"},
        owners=_owners(compiled),
        tags=_tags(compiled, node),
    )
    def export_asset(context: dg.AssetExecutionContext, responses: TaskRef) -> dg.Output[TaskRef]:
        return export(context, responses)

    return export_asset


def _description(compiled: CompiledTemplate, node: CompiledTask) -> str:
    given = compiled.metadata.description or compiled.metadata.annotations.get("description", "")
    spec = node.task.spec
    if isinstance(spec, TrainingSpec):
        return (
            f"{given}\n\nWeights of {spec.model.source.identifier} after {spec.task_type}.".strip()
        )
    model = f" with {spec.model.source.identifier}" if isinstance(spec, ModelSpec) else ""
    return f"{given}\n\nOne output per row: {spec.task_type}{model}.".strip()


def _kinds(node: CompiledTask) -> set[str]:
    spec = node.task.spec
    if not isinstance(spec, ModelSpec | TrainingSpec):
        return {spec.task_type}
    source = {"huggingface": "huggingface"}.get(spec.model.source.type)
    return {"llm", "pytorch"} | ({source} if source else set())


def _owners(compiled: CompiledTemplate) -> list[str]:
    owner = compiled.metadata.owner
    if not owner:
        return []
    # Dagster takes a team or an address as it knows them, and refuses the whole job otherwise.
    return [owner if _EMAIL.fullmatch(owner) else "team:" + re.sub(r"[^A-Za-z0-9_.-]", "_", owner)]


def _tags(compiled: CompiledTemplate, node: CompiledTask) -> dict[str, str]:
    labels = {
        f"mloc/{op_name(name)[:_TAG_LENGTH]}": _tag_text(value)
        for name, value in compiled.metadata.labels.items()
    }
    return {"mloc/task_type": node.task.spec.task_type, **labels}


def _tag_text(value: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]", "_", value)[:_TAG_LENGTH]
