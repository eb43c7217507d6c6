"""What a launch may override, typed: the launchpad completes and checks it."""

import json

import dagster as dg
from pydantic import Field


class ModelOverride(dg.Config):
    """Another model."""

    type: str | None = Field(default=None, description="huggingface, local or builtin")
    identifier: str = Field(description="Hub id, path, or the name of a builtin model")
    revision: str | None = Field(default=None, description="Branch, tag or commit on the hub")


class ParallelOverride(dg.Config):
    """Another cut into shards."""

    enabled: bool | None = Field(default=None, description="false runs the task as one shard")
    max_shards: int | None = Field(default=None, description="At most this many shards")


class OutputOverride(dg.Config):
    """Other outputs."""

    formats: list[str] | None = Field(default=None, description="Of json, parquet, jsonl, csv")
    path: str | None = Field(
        default=None, description="Second copy of the artifacts, below the results root"
    )


class TaskOverrides(dg.Config):
    """Changes to one task for one launch; what is left out stays as the template has it."""

    model: ModelOverride | None = Field(default=None, description="Another model")
    prompts: list[str] | None = Field(default=None, description="Rows instead of the data's own")
    parallel: ParallelOverride | None = Field(default=None, description="Another cut into shards")
    output: OutputOverride | None = Field(default=None, description="Other outputs")


def override_mapping(overrides: TaskOverrides) -> str:
    """Returns the overrides as JSON in the template's own structure."""
    spec: dict[str, object] = {}
    if overrides.model is not None:
        spec["model"] = {"source": _given(overrides.model)}
    if overrides.prompts is not None:
        spec["data"] = {"type": "list", "items": overrides.prompts}
    if overrides.parallel is not None:
        spec["parallel"] = _given(overrides.parallel)
    if overrides.output is not None:
        spec["output"] = _output(overrides.output)
    return json.dumps(spec)


def _output(output: OutputOverride) -> dict[str, object]:
    spec: dict[str, object] = {}
    if output.formats is not None:
        spec["formats"] = output.formats
    if output.path is not None:
        spec["destination"] = {"type": "local", "path": output.path}
    return spec


def _given(config: dg.Config) -> dict[str, object]:
    return {name: value for name, value in config.model_dump().items() if value is not None}
