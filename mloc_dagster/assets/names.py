"""Dagster's names for our things: where it allows less than we do."""

from __future__ import annotations

import re

import dagster as dg

from mloc_dagster.compile.compiler import CompiledTemplate


def op_name(text: str) -> str:
    """Returns `text` with everything that Dagster's names refuse replaced by `_`."""
    return re.sub(r"[^A-Za-z0-9_]", "_", text)


def job_name(compiled: CompiledTemplate) -> str:
    """Returns the name of a template's job."""
    return op_name(compiled.metadata.name)


def asset_key(compiled: CompiledTemplate, node: str, asset: str) -> dg.AssetKey:
    """Returns `<template>/<asset>`, or `<template>/<node>/<asset>` with several nodes."""
    name = compiled.metadata.name
    return dg.AssetKey([name, asset] if len(compiled.tasks) == 1 else [name, node, asset])
