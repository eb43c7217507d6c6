"""The component `mloc.MlocTemplate`: a template in a `defs.yaml` of a project that `dg` made."""

# Dagster reads the types of the fields: they may not be texts.
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import dagster as dg
from dagster.components.resolved.core_models import (
    DailyPartitionsDefinitionModel,
    HourlyPartitionsDefinitionModel,
    StaticPartitionsDefinitionModel,
    TimeWindowPartitionsDefinitionModel,
    WeeklyPartitionsDefinitionModel,
    resolve_partitions_def,
)
from pydantic import BaseModel, Field

from mloc_dagster.assets.placement import Placement, prefix_of
from mloc_dagster.assets.project_assets import compiled_templates
from mloc_dagster.assets.template_job import template_definitions
from mloc_dagster.library import library_file


class DynamicPartitionsModel(dg.Resolvable, dg.Model):
    """Partitions that are added while the project runs."""

    type: Literal["dynamic"] = "dynamic"
    name: str


def _partitions(context: dg.ResolutionContext, model: Any) -> dg.PartitionsDefinition | None:
    if isinstance(model, DynamicPartitionsModel):
        return dg.DynamicPartitionsDefinition(name=model.name)
    return resolve_partitions_def(context, model)


class ScaffoldOptions(BaseModel):
    """What `dg scaffold defs mloc.MlocTemplate` asks for."""

    template: str | None = Field(
        default=None, description="A template of the library to begin with, such as core/echo"
    )


class TemplateScaffolder(dg.Scaffolder[ScaffoldOptions]):
    """Writes a `defs.yaml`, and beside it a template of the library as one's own."""

    @classmethod
    def get_scaffold_params(cls) -> type[ScaffoldOptions]:
        """Returns the options of the command."""
        return ScaffoldOptions

    def scaffold(self, request: dg.ScaffoldRequest[ScaffoldOptions]) -> None:
        """Writes both files."""
        source = library_file(request.params.template or "core/echo")
        name = request.target_path.name
        text = _renamed(source.read_text(), name)
        (request.target_path / _TEMPLATE_NAME).write_text(text)
        dg.scaffold_component(request, {"template": _TEMPLATE_NAME})


_TEMPLATE_NAME = "template.yaml"


def _renamed(text: str, name: str) -> str:
    """Returns a template under another name, with all else as it was written."""
    # The line for editors names a file beside the library's own.
    lines = [each for each in text.splitlines(keepends=True) if "$schema=" not in each]
    for place, line in enumerate(lines):
        if line.startswith("  name: ") and any(
            each.startswith("metadata:") for each in lines[:place]
        ):
            lines[place] = f"  name: {name}\n"
            break
    return "".join(lines)


def _about(text: str, *examples: Any, as_text: bool = False) -> dg.Resolver:
    """Returns what a field of `defs.yaml` is, for its schema.

    Args:
        text: What the field says.
        examples: Of its values.
        as_text: Whether it is an object that YAML names by a template variable.
    """
    return dg.Resolver.default(
        model_field_type=str | None if as_text else None,
        description=text,
        examples=list(examples) or None,
    )


@dg.scaffold_with(TemplateScaffolder)
@dataclass(kw_only=True)
class MlocTemplate(dg.Component, dg.Resolvable):
    """An mloc template: an asset with checks for each of its tasks, a job, and its schedule."""

    template: Annotated[
        str, _about("A file beside this one, or the name of a template of the library", "qa.yaml")
    ]
    set: Annotated[
        Mapping[str, Any],
        _about("Changes of the template by path", {"spec.inference.temperature": 0}),
    ] = field(default_factory=dict)
    deps: Annotated[
        Sequence[dg.ResolvedAssetKey], _about("Assets that its first tasks wait for")
    ] = ()
    rows_from: Annotated[
        dg.ResolvedAssetKey | None, _about("The asset whose rows its first task works on")
    ] = None
    key_prefix: Annotated[
        str | Sequence[str] | None, _about("What the assets' keys start with")
    ] = None
    group_name: Annotated[
        str | None, _about("The assets' group; by default the template's name")
    ] = None
    partitions_def: Annotated[
        dg.PartitionsDefinition | None,
        dg.Resolver(
            _partitions,
            model_field_type=HourlyPartitionsDefinitionModel
            | DailyPartitionsDefinitionModel
            | WeeklyPartitionsDefinitionModel
            | TimeWindowPartitionsDefinitionModel
            | StaticPartitionsDefinitionModel
            | DynamicPartitionsModel
            | None,
            description="Their partitions, instead of the template's; ${partition_key} in it "
            "is that of a run",
        ),
    ] = None
    automation_condition: Annotated[
        dg.AutomationCondition | None,
        _about(
            "When they are materialized by themselves",
            "{{ automation_condition.eager() }}",
            as_text=True,
        ),
    ] = None
    freshness_policy: Annotated[
        dg.FreshnessPolicy | None, _about("How old they may be", as_text=True)
    ] = None
    owners: Annotated[Sequence[str], _about("Owners beside the template's", "team:nlp")] = ()
    tags: Annotated[Mapping[str, str], _about("Tags beside the template's labels")] = field(
        default_factory=dict
    )

    @classmethod
    def get_spec(cls) -> dg.ComponentTypeSpec:
        """Returns what `dg list components` says."""
        return dg.ComponentTypeSpec(
            description="An LLM task of mloc, from one YAML template: inference, embedding, "
            "training, or stages of them.",
            tags=["llm", "mloc"],
            produces=["asset", "asset_check", "job", "schedule"],
        )

    def build_defs(self, context: dg.ComponentLoadContext) -> dg.Definitions:
        """Builds the assets, the job and the schedule."""
        file = context.path / self.template
        template: str | Path = file if file.is_file() else self.template
        placement = Placement(
            key_prefix=prefix_of(self.key_prefix),
            group_name=self.group_name,
            deps=tuple(self.deps),
            rows_from=self.rows_from,
            partitions_def=self.partitions_def,
            automation_condition=self.automation_condition,
            freshness_policy=self.freshness_policy,
            owners=tuple(self.owners),
            tags=dict(self.tags),
        )
        compiled = compiled_templates(template, self.set, placement)
        built = [template_definitions(each, placement=placement) for each in compiled]
        return dg.Definitions(
            assets=[
                asset
                for each in built
                for asset in (*each.assets, *each.sources, *each.evaluations)
            ],
            jobs=[each.job for each in built],
            schedules=[schedule for each in built for schedule in each.schedules],
        )
