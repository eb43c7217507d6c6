"""A template as Dagster sees it: assets, checks, a job, perhaps a schedule."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import dagster as dg

from mloc_dagster.assets.names import job_name
from mloc_dagster.assets.task_assets import task_assets
from mloc_dagster.compile.compiler import CompiledTemplate
from mloc_dagster.fleet.dagster.executor import execution_config
from mloc_dagster.ops.run_tags import NODES_TAG, SLO_TAG
from mloc_dagster.services.stack.plan import STACK

if TYPE_CHECKING:
    # Dagster exports what makes it, and not its name.
    from dagster._core.definitions.unresolved_asset_job_definition import (
        UnresolvedAssetJobDefinition,
    )


@dataclass(frozen=True, slots=True)
class TemplateDefinitions:
    """Everything Dagster needs of one template."""

    assets: list[dg.AssetsDefinition]
    checks: list[dg.AssetChecksDefinition]
    job: "UnresolvedAssetJobDefinition"
    schedules: list[dg.ScheduleDefinition]


def template_definitions(
    compiled: CompiledTemplate, tags: Mapping[str, str] | None = None
) -> TemplateDefinitions:
    """Builds the Dagster definitions of a compiled template.

    Args:
        compiled: The template.
        tags: Tags of its runs, beyond those that all have.
    """
    built = [each for node in compiled.tasks for each in task_assets(compiled, node)]
    assets = [each for each in built if not isinstance(each, dg.AssetChecksDefinition)]
    job = dg.define_asset_job(
        job_name(compiled),
        selection=dg.AssetSelection.assets(*assets),
        description=compiled.metadata.description
        or str(compiled.metadata.annotations.get("description", "")),
        tags={**_tags(compiled), **(tags or {})},
        config=execution_config(),
    )
    checks = [each for each in built if isinstance(each, dg.AssetChecksDefinition)]
    return TemplateDefinitions(assets, checks, job, _schedules(compiled, job))


def _tags(compiled: CompiledTemplate) -> dict[str, str]:
    """Returns what the control plane needs to know of a run without its template."""
    tags = {
        "mloc/template": compiled.metadata.name[:63],
        NODES_TAG: ",".join(each.task.name for each in compiled.tasks),
    }
    promised = [each.task.spec.slo.seconds for each in compiled.tasks if each.task.spec.slo]
    return {**tags, SLO_TAG: f"{max(promised):g}"} if promised else tags


def _schedules(
    compiled: CompiledTemplate, job: "UnresolvedAssetJobDefinition"
) -> list[dg.ScheduleDefinition]:
    if compiled.schedule is None:
        return []
    # `dagster dev` starts no schedule by itself: who tries a template out wants no run at night.
    running = compiled.schedule.enabled and STACK in os.environ
    return [
        dg.ScheduleDefinition(
            name=f"{job_name(compiled)}_schedule",
            job=job,
            cron_schedule=compiled.schedule.cron,
            execution_timezone=compiled.schedule.timezone,
            default_status=(
                dg.DefaultScheduleStatus.RUNNING if running else dg.DefaultScheduleStatus.STOPPED
            ),
        )
    ]
