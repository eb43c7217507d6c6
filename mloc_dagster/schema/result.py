"""What stands in `responses.json` under `result`; references are checked against it."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import JsonValue

from mloc_dagster.schema.base import Block
from mloc_dagster.schema.tools import MessageToolCall


class ResultItem(Block):
    """One row's output."""

    index: int
    """The input's place in the whole input."""

    output: str
    finish_reason: str
    error: str | None = None
    tool_calls: tuple[MessageToolCall, ...] | None = None
    """What the model called."""

    reasoning: str | None = None
    """What it thought before it answered."""

    outputs: tuple[str, ...] | None = None
    finish_reasons: tuple[str, ...] | None = None
    """All answers, when a row asked for several."""

    all_tool_calls: tuple[tuple[MessageToolCall, ...], ...] | None = None
    all_reasoning: tuple[str | None, ...] | None = None
    """Likewise, of several answers."""

    custom_id: str | None = None
    """What the row's sender calls it."""

    embedding: tuple[float, ...] | None = None
    """The vector, of an embedding task."""

    columns: Mapping[str, JsonValue] | None = None
    """What the row brought along from its source, by column."""


class ReusedRows(Block):
    """Rows that were not computed."""

    task: int = 0
    """An equal row of the same task was computed instead."""

    cache: int = 0
    """An earlier task had computed them."""


class Usage(Block):
    """What a task took.

    Everything but `latency_sec` is a sum over the rows that stand in the result. What was computed
    and lost, with a worker that died, is in none of it. Results of earlier versions lack what has
    a default here.
    """

    prompt_tokens: int
    """Tokens of all prompts, those of reused rows included."""

    completion_tokens: int
    """Tokens of all answers, those of reused rows included."""

    reasoning_tokens: int = 0
    """Those of `completion_tokens` that were thoughts, where the engine tells."""

    total_tokens: int
    """Both."""

    latency_sec: float
    """Wall seconds in which shards were at work, from loading the model to their last row; of all
    attempts and runs, without the pauses between them."""

    num_requests: int
    """Rows."""

    model: str = ""
    """What answered."""

    cached_tokens: int = 0
    """Prompt tokens that the engine found in its prefix cache."""

    cache_hit_rate: float = 0.0
    """`cached_tokens` as a share of the prompt tokens of rows that were computed."""

    padding_tokens: int = 0
    """Tokens that were computed only to fill batches."""

    reused_rows: ReusedRows = ReusedRows()
    """Rows that were not computed."""

    reused_tokens: int = 0
    """Tokens, read and written, that nobody computed because of that."""

    saved_seconds: float = 0.0
    """Engine seconds that the reuse saved."""

    engine_seconds: float = 0.0
    """Seconds in which engines worked on these rows, over all workers."""

    gpu_seconds: float = 0.0
    """`engine_seconds` times the GPUs that the engines ran on; 0 on CPUs."""

    energy_joules: float | None = None
    """What the GPUs drew meanwhile; None where nothing measures it."""

    cost: float | None = None
    """Tokens of computed rows at `resources.cost_per_token`, or `engine_seconds` in hours times
    `resources.cost_per_hour`; None without a price. Workers that load models or wait are not in
    it."""


class RowsResult(Block):
    """The result of echo, inference, rag and agent tasks."""

    ok: bool
    model: str | None
    items: tuple[ResultItem, ...]
    usage: Usage
    metrics: Mapping[str, float] | None = None
    """What the task's `evaluation` measured over all rows."""


class AgentItem(ResultItem):
    """What became of one row of an agent."""

    steps: int = 0
    """Turns of the model."""

    stop: str = ""
    """What ended it: `answer`, `max_steps`, `budget`, `timeout` or `error`."""

    failed_calls: int = 0
    """Those of its calls of tools that failed."""


class AgentCounts(Block):
    """How many rows ended how."""

    total_tasks: int
    completed: int
    failed: int


class AgentStep(Block):
    """One row in the execution log."""

    index: int
    stop: str
    steps: int
    tool_calls: int
    seconds: float


class AgentMetadata(Block):
    """What a run of an agent came to."""

    tasks_count: int
    execution_log: tuple[AgentStep, ...]
    """Row by row, the first 1,000 of them."""

    batch_summary: AgentCounts


class AgentUsage(Usage):
    """What an agent task took."""

    execution_time_sec: float
    """The same as `latency_sec`."""

    agent_config: str
    """The template's `configName`."""


class AgentResult(RowsResult):
    """The result of agent tasks."""

    items: tuple[AgentItem, ...]  # pyright: ignore[reportIncompatibleVariableOverride]
    usage: AgentUsage  # pyright: ignore[reportIncompatibleVariableOverride]
    metadata: AgentMetadata


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
