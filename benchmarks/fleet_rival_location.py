"""The template library's assets as jobs of Dagster's own executors; loaded by a code server."""

from __future__ import annotations

from collections.abc import Mapping

import dagster as dg

from mloc_dagster.assets import job_name, template_definitions
from mloc_dagster.definitions import runnable_library

BROKER = "BENCHMARK_BROKER_URL"
"""The environment variable with the Redis of the Celery workers."""


def run_config(system: str) -> Mapping[str, object]:
    """Returns what the runs of a system are given: `stock` or `celery`."""
    executors = {"stock": {}, "celery": {"broker": {"env": BROKER}, "backend": {"env": BROKER}}}
    return {
        "execution": {"config": executors[system]},
        # As the fleet's runs: sixty lines a run on a terminal are not what is compared.
        "loggers": {"console": {"config": {"log_level": "ERROR"}}},
    }


@dg.definitions
def stock() -> dg.Definitions:
    """A process for each step."""
    return _definitions(dg.multiprocess_executor)


@dg.definitions
def celery() -> dg.Definitions:
    """Steps by way of dagster-celery's workers."""
    from dagster_celery import celery_executor

    return _definitions(celery_executor)


def _definitions(executor: dg.ExecutorDefinition) -> dg.Definitions:
    library = runnable_library()
    built = {job_name(each): template_definitions(each) for each in library}
    jobs = [
        dg.define_asset_job(name, dg.AssetSelection.assets(*each.assets), executor_def=executor)
        for name, each in built.items()
    ]
    return dg.Definitions(
        assets=[asset for each in built.values() for asset in each.assets],
        jobs=jobs,
        executor=executor,
    )
