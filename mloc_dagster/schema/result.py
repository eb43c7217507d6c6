"""What stands in `responses.json` under `result`; references are checked against it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import get_args

from pydantic import JsonValue

from mloc_dagster.schema.base import Block, TaskType


class ResultItem(Block):
    """One row's output."""

    index: int
    """The input's place in the whole input."""

    output: str
    finish_reason: str
    error: str | None = None
    outputs: tuple[str, ...] | None = None
    """All answers, when a row asked for several."""

    custom_id: str | None = None
    """What the row's sender calls it."""

    embedding: tuple[float, ...] | None = None
    """The vector, of an embedding task."""


class ReusedRows(Block):
    """Rows that were not computed."""

    task: int = 0
    """An equal row of the same task was computed instead."""

    cache: int = 0
    """An earlier task had computed them."""


class Usage(Block):
    """What a task took."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    latency_sec: float
    num_requests: int
    model: str = ""
    cached_tokens: int = 0
    cache_hit_rate: float = 0.0
    padding_tokens: int = 0
    reused_rows: ReusedRows = ReusedRows()
    reused_tokens: int = 0
    saved_seconds: float = 0.0
    engine_seconds: float = 0.0
    gpu_seconds: float = 0.0
    energy_joules: float | None = None
    cost: float | None = None


class RowsResult(Block):
    """The result of echo, inference, rag and agent tasks."""

    ok: bool
    model: str | None
    items: tuple[ResultItem, ...]
    usage: Usage


class TrainingResult(Block):
    """What every training leaves."""

    training_successful: bool
    training_time_seconds: float
    model_name: str
    dataset_size: int
    output_dir: str
    metrics: Mapping[str, JsonValue]
    final_model_path: str | None = None
    final_model_archive_path: str | None = None
    final_model_archive_url: str | None = None


class LoraTrainingResult(TrainingResult):
    """The result of trainings that may leave a LoRA adapter."""

    final_lora_path: str | None = None
    final_lora_archive_path: str | None = None
    final_lora_archive_url: str | None = None


ROW_TASK_TYPES: frozenset[str] = frozenset({"echo", "inference", "embedding", "rag", "agent"})
"""Task types whose result has a row for each input."""

RESULT_TYPES: Mapping[str, type[RowsResult] | type[TrainingResult]] = {
    name: RowsResult
    if name in ROW_TASK_TYPES
    else (TrainingResult if name == "sft" else LoraTrainingResult)
    for name in get_args(TaskType)
}
"""The result's type for each task type."""
