"""How a task's rows are weighed and ordered while its input is spooled."""

from __future__ import annotations

from collections.abc import Callable

from mloc_dagster.data.planned_spool import InputPlanning, RowForecast
from mloc_dagster.executors.engines.choice import likely_engine, loader_of
from mloc_dagster.executors.row_options import RowOptions
from mloc_dagster.executors.token_count import BYTES_PER_TOKEN, TokenCounter
from mloc_dagster.planning.cost import CostWeights
from mloc_dagster.results.history import Kind, read_history
from mloc_dagster.results.rows import SourceRow
from mloc_dagster.results.store import ResultStore
from mloc_dagster.schema.inference import Inference, Pooling
from mloc_dagster.schema.task import InferenceSpec, ModelSpec, RowSpec

HISTORY_LOOKED_AT = 20
HISTORY_ENOUGH = 5
HISTORY_AMONG = 1000
"""Planning glances at the newest tasks only; a task of a few rows must not wait for more."""

_LOGPROB_BYTES = 60
_DIMENSIONS = 1024  # of a middling embedding model
_NUMBER_BYTES = 20


def input_planning(spec: RowSpec, output_tokens: float | None = None) -> InputPlanning | None:
    """Returns how to weigh and order a task's rows; None leaves them in input order.

    Args:
        spec: The task.
        output_tokens: What an answer has on average, where history knows.
    """
    is_model = isinstance(spec, ModelSpec)
    if (spec.parallel.strategy or ("tokens" if is_model else "rows")) == "rows":
        return None
    forecast = row_forecast(spec, output_tokens)
    if not isinstance(spec, ModelSpec):
        return InputPlanning(TokenCounter(None), forecast, CostWeights(block_tokens=0))
    weights = CostWeights(block_tokens=_block_tokens(spec))
    return InputPlanning(TokenCounter(spec.model.source), forecast, weights)


def kind_of(spec: RowSpec) -> Kind:
    """Returns which earlier tasks are like this one."""
    if isinstance(spec, ModelSpec):
        source = spec.model.source
        return Kind(source.identifier, source.revision, spec.task_type, spec.model.engine)
    return Kind(spec.task_type, None, spec.task_type)


def usual_output_tokens(spec: RowSpec, store: ResultStore) -> float | None:
    """Returns what an answer of earlier tasks like this one had; None where none tells.

    Args:
        spec: The task.
        store: Where earlier tasks are.
    """
    if not isinstance(spec, InferenceSpec):
        return None
    history = read_history(
        store,
        kind_of(spec),
        looked_at=HISTORY_LOOKED_AT,
        enough=HISTORY_ENOUGH,
        among=HISTORY_AMONG,
    )
    per_row = history.completion_tokens_per_row
    return None if per_row is None else per_row / spec.inference.n


def row_forecast(
    spec: RowSpec, output_tokens: float | None = None
) -> Callable[[SourceRow], RowForecast]:
    """Returns what says of a row what it is expected to become; see `input_planning`."""
    if not isinstance(spec, ModelSpec):
        return _nothing
    block = spec.row_block
    return _Generation(block, output_tokens) if isinstance(block, Inference) else _Embedding(block)


class _Generation:
    def __init__(self, block: Inference, output_tokens: float | None) -> None:
        self._block = block
        self._average = output_tokens
        self._options = RowOptions(block)
        self._common = self._of(block)

    def __call__(self, row: SourceRow) -> RowForecast:
        if not row.options:
            return self._common
        try:
            block = self._options.of(row)
        except ValueError:
            return RowForecast(0, 0, repeatable=False)  # it will end with an error
        return self._of(block if isinstance(block, Inference) else self._block)

    def _of(self, block: Inference) -> RowForecast:
        each = block.max_tokens
        if self._average is not None:
            each = min(each, max(round(self._average), block.min_tokens, 1))
        tokens = each * block.n
        logprobs = 0 if block.logprobs is None else tokens * (1 + block.logprobs) * _LOGPROB_BYTES
        return RowForecast(tokens, tokens * BYTES_PER_TOKEN + logprobs, block.deterministic)


class _Embedding:
    def __init__(self, block: Pooling) -> None:
        self._forecast = RowForecast(0, (block.dimensions or _DIMENSIONS) * _NUMBER_BYTES, True)

    def __call__(self, row: SourceRow) -> RowForecast:
        return self._forecast


def _nothing(row: SourceRow) -> RowForecast:
    return RowForecast(0, 0, repeatable=False)


def _block_tokens(spec: ModelSpec) -> int:
    """Returns the block size of the engine's prefix cache, as far as it is known without a GPU."""
    engine = None if spec.leaves_vectors else likely_engine(spec)
    return 0 if engine is None else loader_of(engine).prefix_block_tokens(spec)
