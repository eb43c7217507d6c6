"""The only `dg.Definitions`: every runnable template of the library as job, assets and checks."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence

import dagster as dg

from mloc_dagster.assets import batch_definitions, job_name, template_definitions
from mloc_dagster.compile import CompiledTemplate, compile_files
from mloc_dagster.fleet import mloc_executor
from mloc_dagster.library import library_files
from mloc_dagster.sensors import publish_events_sensor

_log = logging.getLogger("dagster.mloc")


def build_definitions(
    templates: Sequence[CompiledTemplate],
    sensors: Sequence[dg.SensorDefinition] = (),
    *,
    tags_of: Callable[[CompiledTemplate], Mapping[str, str]] = lambda _: {},
    schedules: bool = True,
) -> dg.Definitions:
    """Builds the definitions of compiled templates; names must differ from one another.

    Args:
        templates: What to build.
        sensors: To go with them.
        tags_of: Tags of a template's runs, beyond its own.
        schedules: Whether templates may run by themselves.
    """
    built = [template_definitions(each, tags_of(each)) for each in templates]
    return dg.Definitions(
        assets=[asset for each in built for asset in each.assets],
        jobs=[each.job for each in built],
        schedules=[each for one in built for each in one.schedules] if schedules else [],
        sensors=list(sensors),
        executor=mloc_executor(),
    )


def runnable_library() -> list[CompiledTemplate]:
    """Compiles the library, leaving out what cannot run here and saying so.

    One broken or foreign template must not take the others down: Dagster loads a code location
    as a whole or not at all.
    """
    templates, findings = compile_files(list(library_files().values()))
    for finding in findings:
        if finding.severity == "error":
            _log.warning("left out: %s", finding)
    runnable: dict[str, CompiledTemplate] = {}
    for each in templates:
        if each.unbuilt:
            _log.info("left out: %s", each.unbuilt[0])
        elif job_name(each) in runnable:
            _log.warning("left out: a second template named %s", each.metadata.name)
        else:
            runnable[job_name(each)] = each
    return list(runnable.values())


@dg.definitions
def defs() -> dg.Definitions:
    """Builds the code location when Dagster loads it; importing this module does nothing."""
    return dg.Definitions.merge(
        build_definitions(runnable_library(), [publish_events_sensor()]),
        batch_definitions(),
    )
