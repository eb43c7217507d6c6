"""The executor of `rerank` tasks: a row and its passages → pairs → scores → a better order.

Each pair is a request of its own, so that batches are formed over rows, and equal pairs are
computed once. A row is emitted when all of its pairs have their scores.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import msgspec

from mloc_dagster.errors import InputError
from mloc_dagster.executors.base import Caller, ShardContext, ShardInput
from mloc_dagster.executors.budget import most_new_tokens
from mloc_dagster.executors.calls import between_calls
from mloc_dagster.executors.engines.protocol import (
    Completion,
    Engine,
    EngineRequest,
    Rendered,
    Replies,
    ScoringEngine,
)
from mloc_dagster.executors.inference import InferenceExecutor
from mloc_dagster.executors.prompts import is_blank
from mloc_dagster.executors.reuse_identity import earlier_answers
from mloc_dagster.executors.row_reuse import RequestKeys, RowReuse
from mloc_dagster.results import (
    SERVER_FAULT,
    InputRow,
    OutputRow,
    Passage,
    Rates,
    ServerFault,
    failed_row,
)
from mloc_dagster.schema import ModelSpec, RerankSpec

WINDOW_PAIRS = 256
"""Pairs that are looked up together among those of earlier tasks."""


class RerankExecutor(InferenceExecutor):
    """Puts the passages of each row in order, on the engine that the task gets."""

    def compute(  # pyright: ignore[reportIncompatibleMethodOverride]  (its specs are reranks')
        self, shard: ShardInput, spec: RerankSpec, model: ScoringEngine, context: ShardContext
    ) -> None:
        """Scores the pairs of every row, and emits each row in its better order.

        Raises:
            TaskCancelled: If the task was asked to stop.
            TransientError: If the engine is lost and another attempt may help.
        """
        with earlier_answers(spec, model, context.log) as earlier:
            rows = _Rows(spec, model, context)
            reuse = RowReuse(RequestKeys(earlier.identity), rows.take, earlier.rows)
            replies = Replies(
                lambda request, completion: _settle(reuse, request, completion, model),
                lambda request, reason: reuse.settle(request, _failed(request, reason, model)),
                context.cancelled,
                context.log,
            )
            with between_calls(model, context.cancelled):
                model.run(reuse.needed(rows.windows(shard.rows)), replies)

    def answer(
        self, rows: Sequence[InputRow], spec: ModelSpec, model: Engine, caller: Caller
    ) -> Sequence[OutputRow]:
        """Refuses: nobody waits for such tasks row by row.

        Raises:
            InputError: Always.
        """
        raise InputError(f"a task of type {spec.task_type!r} answers no calls")


def _settle(
    reuse: RowReuse, request: EngineRequest, completion: Completion, engine: Engine
) -> None:
    """Takes the score of a pair: as a row of its own, as which it is kept for later tasks."""
    score = completion.score
    if score is None or not math.isfinite(score):
        reason = ServerFault(f"the model's score of a passage is no number: {score}")
        reuse.settle(request, _failed(request, reason, engine))
        return
    scored = OutputRow(
        index=request.row.index,
        prompt="",
        retrieved=[Passage("", rerank=score)],
        prompt_tokens=completion.prompt_tokens,
        cached_tokens=completion.cached_tokens,
        padding_tokens=completion.padding_tokens,
        engine_s=completion.engine_s,
    )
    reuse.settle(request, scored, completion)


def _failed(request: EngineRequest, reason: str, engine: Engine) -> OutputRow:
    return failed_row(request.row, reason, engine.label, len(request.tokens))


@dataclass(slots=True)
class _OpenRow:
    """A row some of whose pairs are still to be scored.

    Attributes:
        row: The row.
        missing: How many.
        began: When it was drawn.
        pairs: What became of each.
    """

    row: InputRow
    missing: int
    began: float
    pairs: list[OutputRow | None] = field(default_factory=list[OutputRow | None])


class _Rows:
    """Makes pairs of rows, and rows of what became of their pairs.

    Args:
        spec: The task.
        engine: The engine.
        context: Takes finished rows.
    """

    def __init__(self, spec: RerankSpec, engine: ScoringEngine, context: ShardContext) -> None:
        self._spec = spec
        self._engine = engine
        self._emit = context.emit
        self._limits, self._rates = spec.budget.per_row, Rates.of(spec.resources)
        self._places: dict[int, tuple[_OpenRow, int]] = {}  # by the number of the pair
        self._pairs = 0

    def windows(self, rows: Iterable[InputRow]) -> Iterator[list[EngineRequest]]:
        """Yields the pairs of rows; rows without any are emitted in time."""
        window: list[EngineRequest] = []
        for row in rows:
            try:
                window += self._requests(row)
            except ValueError as error:
                self._emit(failed_row(row, str(error), self._engine.label))
            if len(window) >= WINDOW_PAIRS:
                yield window
                window = []
        yield window

    def _requests(self, row: InputRow) -> Iterator[EngineRequest]:
        if row.error is not None:
            raise ValueError(row.error)
        if not row.retrieved:
            self._emit(self._output(row, row.retrieved))
            return
        if is_blank(row.prompt):
            raise ValueError("the prompt is empty")
        text = self._engine.render(row, self._spec.rerank).text
        others = [each.text for each in row.retrieved]
        pairs = self._engine.tokenize_pairs(text, others)
        most_new_tokens(self._limits, self._rates, sum(len(each.tokens) for each in pairs))
        opened = _OpenRow(row, len(pairs), time.monotonic(), [None] * len(pairs))
        for place, (other, pair) in enumerate(zip(others, pairs, strict=True)):
            number, self._pairs = self._pairs, self._pairs + 1
            self._places[number] = opened, place
            rendered = Rendered(text, pair=other)
            yield EngineRequest(InputRow(number, ""), rendered, pair.tokens, second=pair.second)

    def take(self, pair: OutputRow) -> None:
        """Takes what became of a pair; emits its row if that was the last one."""
        opened, place = self._places.pop(pair.index)
        opened.pairs[place] = pair
        opened.missing -= 1
        if not opened.missing:
            self._emit(self._finished(opened))

    def _finished(self, opened: _OpenRow) -> OutputRow:
        row, pairs = opened.row, [each for each in opened.pairs if each is not None]
        origins = {each.reused for each in pairs}
        failed = next((each for each in pairs if each.error is not None), None)
        if failed is not None:
            error = str(failed.error)
            reason = ServerFault(error) if failed.fault == SERVER_FAULT else error
            output = failed_row(row, reason, self._engine.label)
        else:
            found = zip(row.retrieved or (), pairs, strict=True)
            output = self._output(row, [_scored(passage, pair) for passage, pair in found])
        return msgspec.structs.replace(
            output,
            prompt_tokens=sum(each.prompt_tokens for each in pairs),
            cached_tokens=sum(each.cached_tokens for each in pairs),
            padding_tokens=sum(each.padding_tokens for each in pairs),
            engine_s=sum(each.engine_s for each in pairs),
            saved_s=sum(each.saved_s for each in pairs),
            reused="" if "" in origins else "cache" if "cache" in origins else "task",
            latency_s=time.monotonic() - opened.began,
        )

    def _output(self, row: InputRow, passages: list[Passage] | None) -> OutputRow:
        if passages is not None:
            best = sorted(passages, key=lambda each: (-(each.score or 0.0), each.id))
            passages = best[: self._spec.rerank.top_k]
        return OutputRow(
            index=row.index,
            prompt=row.prompt,
            output=passages[0].text if passages else "",
            engine=self._engine.label,
            custom_id=row.custom_id,
            retrieved=passages,
        )


def _scored(passage: Passage, pair: OutputRow) -> Passage:
    score = pair.retrieved[0].rerank if pair.retrieved else None
    return msgspec.structs.replace(passage, rerank=score, score=score)
