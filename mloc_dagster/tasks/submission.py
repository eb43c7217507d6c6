"""Handing runs to the fleet, with or without a Dagster workspace at hand."""

from __future__ import annotations

import dagster as dg
from dagster import DagsterRun
from dagster._core.definitions.repository_definition.valid_definitions import (
    SINGLETON_REPOSITORY_NAME,
)
from dagster._core.remote_origin import (
    RegisteredCodeLocationOrigin,
    RemoteJobOrigin,
    RemoteRepositoryOrigin,
)

CODE_LOCATION = "mloc_dagster.definitions"
"""The library's code location in every workspace that mloc writes, and its default name."""


def job_origin(job_name: str, location: str = CODE_LOCATION) -> RemoteJobOrigin:
    """Returns how the UI finds a job: by default that of a library template."""
    origin = RegisteredCodeLocationOrigin(location)
    repository = RemoteRepositoryOrigin(origin, SINGLETON_REPOSITORY_NAME)
    return RemoteJobOrigin(repository, job_name)


def submit(instance: dg.DagsterInstance, run: DagsterRun) -> None:
    """Hands a created run to the instance's run coordinator: it waits in Dagster's queue."""
    # Neither the queue nor the fleet's launcher looks at the workspace, which only the UI has.
    instance.submit_run(run.run_id, workspace=None)  # type: ignore[arg-type]
