"""Dagster's names for our things: where it allows less than we do."""

from __future__ import annotations

import dagster as dg

from mloc_dagster.compile.compiler import CompiledTemplate
from mloc_dagster.ops.run_tags import op_name


def job_name(compiled: CompiledTemplate) -> str:
    """Returns the name of a template's job."""
    return op_name(compiled.metadata.name)


def node_name(compiled: CompiledTemplate, node: str) -> str:
    """Returns the name of a task's graph, which starts the keys of its steps.

    It may not be the job's name: Dagster keeps jobs, graphs and ops in one namespace.
    """
    return op_name(f"{compiled.metadata.name}__{'task' if len(compiled.tasks) == 1 else node}")


def asset_key(compiled: CompiledTemplate, node: str, asset: str) -> dg.AssetKey:
    """Returns `<template>/<asset>`, or `<template>/<node>_<asset>` with several nodes.

    The UI's graphs show the last part of a key only: it has to tell the nodes apart.
    """
    single = len(compiled.tasks) == 1
    return dg.AssetKey([compiled.metadata.name, asset if single else f"{node}_{asset}"])
