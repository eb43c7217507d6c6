"""What is kept, and where it is sent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field, SecretStr, field_validator

from mloc_dagster.schema.base import Block
from mloc_dagster.schema.markers import ResultPath, Url

OutputFormat = Literal["json", "parquet", "jsonl", "csv", "openai_batch"]

FINAL_MODEL = "final_model"
"""The folder with what a training of all weights leaves."""

FINAL_LORA = "final_lora"
"""The folder with the adapter that a training leaves."""

BATCH_OUTPUT_NAME = "batch_output.jsonl"
"""Answers in the OpenAI batch format."""

BATCH_ERRORS_NAME = "batch_errors.jsonl"
"""Errors in the OpenAI batch format."""

CHECKPOINTS_NAME = "checkpoints"
"""The folder with a training's checkpoints."""

_OLD_WEIGHTS = frozenset({"trained_model", "artifacts", "artifacts/lora_adapter"})
_OLD_CHECKPOINTS = "artifacts/checkpoints"


def artifact_name(name: str, final: str) -> str:
    """Returns an artifact of a training by the name that it has here.

    Args:
        name: As the template has it; older ones have names of the old system.
        final: The folder with the final weights; empty where none are kept.
    """
    bare = name.rstrip("/")
    if bare == _OLD_CHECKPOINTS:
        return CHECKPOINTS_NAME
    return final if bare in _OLD_WEIGHTS and final else bare


_SET_PER_BODY = frozenset({"content-length", "content-encoding", "transfer-encoding"})


class LocalDestination(Block):
    """Keeps the results on the store."""

    type: Literal["local"] = "local"
    path: Annotated[str | None, ResultPath()] = None
    """A second copy of the artifacts, relative to the results root; the latest run wins."""

    @field_validator("path")
    @classmethod
    def _stay_below(cls, value: str | None) -> str | None:
        parts = (value or "").replace("\\", "/").split("/")
        if ".." in parts:
            raise ValueError(f"{value!r} leaves the results root")
        first = next((part for part in parts if part not in ("", ".")), "")
        if first.startswith("."):
            raise ValueError(f"{value!r} is not for results: {first!r} is where mloc keeps its own")
        return value


class HttpDestination(Block):
    """Posts the result, then uploads the artifacts."""

    type: Literal["http"]
    url: Annotated[str, Url()] = Field(pattern=r"^(https?://[^\s/]+|\$\{)")
    """The result goes to this URL (`${MY_URL}` takes it from the environment), each artifact to
    `<url>/<task_id>/files`."""

    method: Literal["POST", "PUT"] = "POST"
    """How the result is sent."""

    headers: Mapping[str, SecretStr] = Field(default_factory=dict)
    """Sent with each request; take secrets from the environment: `Bearer ${MY_TOKEN}`. A
    `Content-Type` goes with the result only, an artifact is a multipart form."""

    timeout_s: float = Field(default=30.0, gt=0, le=600, alias="timeoutSec")
    """Seconds one request may take."""

    max_attempts: int = Field(default=4, ge=1, le=10)
    """Tries per request, with growing pauses."""

    @field_validator("headers")
    @classmethod
    def _describe_no_body(cls, value: Mapping[str, SecretStr]) -> Mapping[str, SecretStr]:
        for name in value:
            if name.lower() in _SET_PER_BODY:
                raise ValueError(f"{name!r} is set by mloc for each request: remove it")
        return value


Destination = Annotated[LocalDestination | HttpDestination, Field(discriminator="type")]


class Output(Block):
    """The results that a task must leave, and their destination."""

    destination: Destination = LocalDestination()
    artifacts: tuple[str, ...] = ("responses.json",)
    """Files and folders of the task's results that the manifest requires."""

    formats: tuple[OutputFormat, ...] = ("json", "parquet")
    """Files to write: `responses.json`, `responses.parquet`, …"""

    @field_validator("artifacts")
    @classmethod
    def _stay_inside(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            parts = name.replace("\\", "/").split("/")
            if name.startswith(("/", "\\")) or ".." in parts or "\0" in name or not name.strip("/"):
                raise ValueError(f"{name!r} leaves the task's folder")
        return value


class Checks(Block):
    """Limits of the asset checks that block what comes after."""

    max_empty_fraction: float = Field(default=0.5, ge=0, le=1)
    """Share of rows whose output may be empty."""
