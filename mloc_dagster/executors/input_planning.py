"""How rows are weighed and ordered while spooled; tokens are counted without a model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from mloc_dagster.data import InputPlanning, RowForecast
from mloc_dagster.executors.engines.choice import likely_engine, loader_of
from mloc_dagster.executors.prompts import RowOptions
from mloc_dagster.models import builtin_model_path
from mloc_dagster.planning import CostWeights
from mloc_dagster.results import Kind, ResultStore, SourceRow, read_history
from mloc_dagster.schema import (
    Inference,
    InferenceSpec,
    ModelSource,
    ModelSpec,
    Pooling,
    Reranking,
    RowSpec,
)

if TYPE_CHECKING:
    from tokenizers import Tokenizer


BYTES_PER_TOKEN = 4
"""English prose in today's vocabularies; other scripts take more tokens a byte."""

_BATCH_CHARACTERS = 1 << 19  # a token takes about 100 bytes while it is counted
_LONGEST = 1 << 18  # characters; no model reads more, and counting may be quadratic in it


class TokenCounter:
    """Counts the tokens of texts with a model's own tokenizer, where it is on this machine.

    Attributes:
        source: Who counts, or how it is estimated.
        counted: Whether it counts.

    Args:
        source: The model; None estimates.
    """

    def __init__(self, source: ModelSource | None) -> None:
        self._tokenizer: Tokenizer | None = None
        self.source = f"estimated: {BYTES_PER_TOKEN} bytes a token"
        path = None if source is None else find_tokenizer(source)
        if source is None or path is None:
            return
        try:
            self._tokenizer = _load(path)
        except Exception as error:  # noqa: BLE001 - tokenizers raises nothing narrower
            self.source += f", as {path} cannot be read ({error})"
        else:
            self.source = f"counted by the tokenizer of {source.identifier}"

    @property
    def counted(self) -> bool:
        """Whether this is no estimate."""
        return self._tokenizer is not None

    def __call__(self, texts: Sequence[str]) -> list[int]:
        """Returns the tokens of each text, without special ones; 0 for an empty text."""
        if self._tokenizer is None:
            return list(map(estimate_tokens, texts))
        counts = list(map(_estimate_if_long, texts))
        for places in _batches(texts):
            encodings = self._tokenizer.encode_batch_fast(
                [texts[place] for place in places], add_special_tokens=False
            )
            for place, encoding in zip(places, encodings, strict=True):
                counts[place] = len(encoding)
        return counts


def find_tokenizer(source: ModelSource) -> Path | None:
    """Returns a model's `tokenizer.json` on this machine; None if there is none. No network.

    There is none either where the extra `hf` is not installed: a machine that only plans.
    """
    return model_file(source, "tokenizer.json") if find_spec("tokenizers") else None


def model_file(source: ModelSource, name: str) -> Path | None:
    """Returns a file of a model on this machine; None if there is none. No network."""
    if source.type == "openai":
        return None  # whatever the endpoint has, it is not here
    if not find_spec("huggingface_hub"):
        return None
    path: str | object | None
    if source.type == "builtin":
        path = str(builtin_model_path(source.identifier) / name)
    elif source.type == "local":
        path = str(Path(source.identifier).expanduser() / name)
    else:
        from huggingface_hub import try_to_load_from_cache

        path = try_to_load_from_cache(source.identifier, name, revision=source.revision)
    # The hub's cache also knows that a file does not exist, and says so with an object.
    return Path(path) if isinstance(path, str) and Path(path).is_file() else None


def estimate_tokens(text: str) -> int:
    """Returns about how many tokens a text has, by its bytes."""
    return -(-len(text.encode()) // BYTES_PER_TOKEN)


def _estimate_if_long(text: str) -> int:
    return estimate_tokens(text) if len(text) > _LONGEST else 0


def _batches(texts: Sequence[str]) -> Iterator[list[int]]:
    places: list[int] = []
    size = 0
    for place, text in enumerate(texts):
        if not 0 < len(text) <= _LONGEST:
            continue
        places.append(place)
        size += len(text)
        if size >= _BATCH_CHARACTERS:
            yield places
            places, size = [], 0
    if places:
        yield places


@lru_cache(maxsize=4)
def _load(path: Path) -> Tokenizer:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


HISTORY_LOOKED_AT = 20
HISTORY_ENOUGH = 5
HISTORY_AMONG = 1000
"""Planning glances at the newest tasks only; a task of a few rows must not wait for more."""

_LOGPROB_BYTES = 60
_DIMENSIONS = 1024  # of a middling embedding model
_NUMBER_BYTES = 20
_PASSAGE_BYTES = 2000


def plan_input(spec: RowSpec, output_tokens: float | None = None) -> InputPlanning | None:
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
    """Returns what says of a row what it is expected to become; see `plan_input`."""
    if not isinstance(spec, ModelSpec):
        return _nothing
    block = spec.row_block
    match block:
        case Inference():
            return _Generation(block, output_tokens)
        case Pooling():
            return _Always(RowForecast(0, (block.dimensions or _DIMENSIONS) * _NUMBER_BYTES, True))
        case Reranking():
            return _Always(RowForecast(0, block.top_k * _PASSAGE_BYTES, True))


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


class _Always:
    def __init__(self, forecast: RowForecast) -> None:
        self._forecast = forecast

    def __call__(self, row: SourceRow) -> RowForecast:
        return self._forecast


def _nothing(row: SourceRow) -> RowForecast:
    return RowForecast(0, 0, repeatable=False)


def _block_tokens(spec: ModelSpec) -> int:
    """Returns the block size of the engine's prefix cache, as far as it is known without a GPU."""
    engine = likely_engine(spec) if spec.ability == "generate" else None
    return 0 if engine is None else loader_of(engine).prefix_block_tokens(spec)
