"""The only `dg.Definitions`: every template of the library, and those that were run from here."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence

import dagster as dg

from mloc_dagster.assets import batch_definitions, job_name, template_definitions
from mloc_dagster.compile import CompiledTemplate, compile_files
from mloc_dagster.fleet import mloc_executor
from mloc_dagster.library import library_files
from mloc_dagster.recent_templates import recent_templates
from mloc_dagster.sensors import publish_events_sensor
from mloc_dagster.services import STACK

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
        assets=[
            asset for each in built for asset in (*each.assets, *each.sources, *each.evaluations)
        ],
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


def fitting(
    templates: Sequence[CompiledTemplate], fits: Callable[[Sequence[CompiledTemplate]], bool]
) -> list[CompiledTemplate]:
    """Returns templates that can be in one code location, leaving out as few as possible.

    Names that differ may still meet in one of Dagster's, and a task type may have lost its
    executor. Halves are tried until each culprit is found; the newest come first, and win.

    Args:
        templates: The newest first.
        fits: Whether a location can be made of these.
    """
    kept: list[CompiledTemplate] = []
    waiting = [list(templates)] if templates else []
    while waiting:
        some = waiting.pop()
        if fits([*kept, *some]):
            kept += some
        elif len(some) > 1:
            middle = len(some) // 2
            waiting += [some[middle:], some[:middle]]
        else:
            _log.warning("left out: the template %s", some[0].metadata.name)
    return kept


def loads(definitions: dg.Definitions) -> bool:
    """Tells whether Dagster takes definitions."""
    try:
        definitions.get_repository_def().load_all_definitions()
    except Exception as error:  # noqa: BLE001 (Dagster refuses in many ways)
        _log.info("some templates do not fit together: %s", error)
        return False
    return True


def _run_here(library: Sequence[CompiledTemplate]) -> list[CompiledTemplate]:
    """Returns the templates that were run from this home and are not in the library."""
    taken = {job_name(each) for each in library}
    found: dict[str, CompiledTemplate] = {}
    # `mloc up` has a location of its own for those that came over the API.
    for each in recent_templates(submitted=STACK not in os.environ):
        if job_name(each) not in taken:
            found.setdefault(job_name(each), each)
    return list(found.values())


def _with(
    library: Sequence[CompiledTemplate], others: Sequence[CompiledTemplate]
) -> dg.Definitions:
    return dg.Definitions.merge(
        build_definitions([*library, *others], [publish_events_sensor()]),
        batch_definitions(),
    )


@dg.definitions
def defs() -> dg.Definitions:
    """Builds the code location when Dagster loads it; importing this module does nothing."""
    library = runnable_library()
    others = _run_here(library)
    built = _with(library, others)
    # Every process that loads the location would wait for what is built in vain.
    if others and not loads(built):
        built = _with(library, fitting(others, lambda some: loads(_with(library, some))))
    return built
