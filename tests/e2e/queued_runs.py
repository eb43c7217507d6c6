"""Runs that wait in Dagster's queue, without a daemon that would take them."""

from __future__ import annotations

import uuid
from collections.abc import Mapping

import dagster as dg
import yaml
from dagster._core.remote_origin import (
    RegisteredCodeLocationOrigin,
    RemoteJobOrigin,
    RemoteRepositoryOrigin,
)

from mloc_dagster.assets import job_name
from mloc_dagster.compile import CompiledTemplate, compile_mapping
from mloc_dagster.definitions import build_definitions


def echo_template(name: str, echo: str = "", more: str = "") -> CompiledTemplate:
    """Four rows in two shards, tried twice."""
    spec = f"""
data: {{type: list, items: [a, b, c, d]}}
parallel: {{max_shards: 2}}
retries: {{max: 1, delay_s: 0}}
echo: {{{echo}}}
{more}
"""
    document = {"apiVersion": "mloc/v1", "kind": "EchoTask", "metadata": {"name": name}}
    return compile_mapping({**document, "spec": yaml.safe_load(spec)})


def queued(
    instance: dg.DagsterInstance, compiled: CompiledTemplate, tags: Mapping[str, str] | None = None
) -> dg.DagsterRun:
    """A run of the template's job that was submitted and waits."""
    name = job_name(compiled)
    job = build_definitions([compiled]).resolve_job_def(name)
    repository = RemoteRepositoryOrigin(RegisteredCodeLocationOrigin("tests"), "__repository__")
    run = instance.create_run_for_job(
        job,
        run_id=str(uuid.uuid4()),
        tags={**job.tags, **(tags or {})},
        remote_job_origin=RemoteJobOrigin(repository, name),
    )
    enqueued = dg.DagsterEvent.job_enqueue(run)
    instance.report_dagster_event(enqueued, run_id=run.run_id)
    return run
