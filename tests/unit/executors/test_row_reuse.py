"""Equal rows are computed once: what the engine is given, and what the rows say."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from mloc_dagster.errors import TaskCancelled
from mloc_dagster.executors import image_stream, row_reuse
from mloc_dagster.executors.base import ShardContext, ShardInput
from mloc_dagster.executors.engines.protocol import (
    Answer,
    Completion,
    EngineRequest,
    Rendered,
    Replies,
)
from mloc_dagster.executors.inference import answer_rows
from mloc_dagster.executors.prompts import RowBlock, instruction_of
from mloc_dagster.executors.row_reuse import RequestKeys
from mloc_dagster.results import InputRow, Message, OutputRow
from mloc_dagster.schema import EmbeddingSpec, Inference, InferenceSpec

MODEL = {"source": {"type": "local", "identifier": "nowhere"}, "engine": "transformers"}
DATA = {"type": "list", "items": ["unused"]}


class CountingEngine:
    """Answers with the prompt in capitals, `capacity` requests at a time, and counts."""

    label = "counting 1"
    name = "nowhere"
    revision = "sha256:0"
    device = "cpu"
    size_bytes = 0

    def __init__(self, capacity: int = 4) -> None:
        self.capacity = capacity
        self.asked: list[int] = []

    def render(self, row: InputRow, block: RowBlock) -> Rendered:
        prompt = row.prompt if isinstance(row.prompt, str) else str(row.prompt[-1].content)
        if prompt == "unreadable":
            raise ValueError("cannot be read")
        return Rendered(f"{instruction_of(block) or ''}{prompt}")

    def tokenize(self, texts: list[str], *, special: bool = True) -> list[list[int]]:
        return [[ord(letter) for letter in text] for text in texts]

    def run(self, requests: Iterator[EngineRequest], replies: Replies) -> None:
        more = True
        while more:
            held: list[EngineRequest] = []
            while len(held) < self.capacity and (request := next(requests, None)):
                held.append(request)
            more = bool(held)
            for request in reversed(held):  # out of order, as a real engine
                self._answer(request, replies)

    def _answer(self, request: EngineRequest, replies: Replies) -> None:
        self.asked.append(request.row.index)
        text = request.rendered.text
        if "broken" in text:
            replies.failed(request, "the engine cannot digest this")
            return
        random = request.sampling is not None and not request.sampling.greedy
        text_out = f"{text.upper()} {request.seed}" if random else text.upper()
        answer = Answer(text_out, "stop", len(text))
        replies.done(
            request,
            Completion(
                answers=(answer,) if request.sampling else (),
                embedding=None if request.sampling else [float(len(text))],
                prompt_tokens=len(text),
                cached_tokens=3,
                engine_s=0.25,
                latency_s=0.5,
            ),
        )

    def close(self) -> None:
        return None


def run(
    rows: list[Any], engine: CountingEngine, spec: dict[str, Any] | None = None
) -> dict[int, OutputRow]:
    given = [
        msgspec.structs.replace(row, index=index) if isinstance(row, InputRow)
        else InputRow(index, row, custom_id=f"c{index}")
        for index, row in enumerate(rows)
    ]  # fmt: skip
    emitted: dict[int, OutputRow] = {}

    def emit(row: OutputRow) -> None:
        assert row.index not in emitted
        emitted[row.index] = row

    context = ShardContext(emit, lambda: False, lambda _: None)
    answer_rows(ShardInput("t", 0, 1, 7, iter(given), len(given)), make_spec(spec), engine, context)
    assert sorted(emitted) == list(range(len(rows)))
    return emitted


def make_spec(inference: dict[str, Any] | None) -> InferenceSpec:
    return InferenceSpec.model_validate(
        {
            "taskType": "inference",
            "model": MODEL,
            "data": DATA,
            "inference": {"temperature": 0, **(inference or {})},
        }
    )


def test_equal_rows_are_computed_once_and_each_has_its_own_row() -> None:
    engine = CountingEngine()
    rows = run(["a", "b", "a", "c", "a", "b", "d", "a"], engine)
    assert sorted(engine.asked) == [0, 1, 3, 6]
    assert [rows[index].output for index in range(8)] == list("ABACABDA")
    assert [index for index in range(8) if rows[index].reused == "task"] == [2, 4, 5, 7]
    copy = rows[4]
    assert (copy.prompt, copy.custom_id, copy.prompt_tokens) == ("a", "c4", 1)
    assert (copy.engine_s, copy.saved_s, copy.cached_tokens) == (0.0, 0.25, 0)
    assert copy.completion_tokens == rows[0].completion_tokens
    assert (rows[0].saved_s, rows[0].engine_s) == (0.0, 0.25)


def test_answers_are_remembered_across_windows_within_bounds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(row_reuse, "MOST_ANSWERS", 10)
    distinct = [f"p{number}" for number in range(300)]
    engine = CountingEngine(capacity=1)
    rows = run(["a", "a", *distinct, "a", distinct[-1]], engine)
    assert 1 not in engine.asked
    assert 302 in engine.asked  # forgotten by then, and computed again
    assert 303 not in engine.asked
    assert rows[302].output == rows[0].output


def test_memory_is_bounded_by_bytes_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_reuse, "MOST_ANSWER_BYTES", 1)
    engine = CountingEngine(capacity=1)
    run(["a", "b", "a"], engine)
    assert engine.asked == [0, 1, 2]


def test_a_long_run_of_equal_rows_is_not_drawn_before_the_engine_works(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(row_reuse, "MOST_WAITING", 100)
    drawn = 0

    def equal_rows() -> Iterator[InputRow]:
        nonlocal drawn
        for drawn in range(1, 5001):
            yield InputRow(drawn - 1, "a")

    class Watching(CountingEngine):
        drawn_at_first = 0

        def _answer(self, request: EngineRequest, replies: Replies) -> None:
            self.drawn_at_first = self.drawn_at_first or drawn
            super()._answer(request, replies)

    engine = Watching(capacity=4)
    emitted: list[OutputRow] = []
    context = ShardContext(emitted.append, lambda: False, lambda _: None)
    answer_rows(ShardInput("t", 0, 1, 7, equal_rows(), 5000), make_spec(None), engine, context)
    assert engine.drawn_at_first <= 3 * 64
    assert engine.asked == [103, 102, 101, 0]  # those for which there was no room to wait
    assert sorted(row.index for row in emitted) == list(range(5000))
    assert {row.output for row in emitted} == {"A"}


def test_rows_may_wait_again_once_others_have_their_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(row_reuse, "MOST_WAITING", 2)
    engine = CountingEngine(capacity=2)
    # The third of each leaves no more room, and is what lets the engine answer.
    run(["a", "a", "a", "a", "b", "b", "b", "b"], engine)
    assert engine.asked == [3, 0, 7, 4]


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.sampled_from(["a", "b", "broken"]), max_size=40),
    st.integers(1, 5),
    st.integers(0, 4),
    st.randoms(use_true_random=False),
)
def test_each_row_is_answered_once_and_few_wait(
    monkeypatch: pytest.MonkeyPatch, texts: list[str], capacity: int, most: int, random: Any
) -> None:
    """Whatever the engine holds at a time, and in whatever order it answers."""
    monkeypatch.setattr(row_reuse, "MOST_WAITING", most)
    drawn: list[int] = []
    emitted: list[OutputRow] = []
    block = Inference(temperature=0)

    def windows() -> Iterator[list[EngineRequest]]:
        for index, text in enumerate(texts):
            drawn.append(index)
            yield [EngineRequest(InputRow(index, text), Rendered(text), [1], sampling=block)]

    reuse = row_reuse.RowReuse(RequestKeys(), emitted.append)
    needed = reuse.needed(windows())
    held: list[EngineRequest] = []
    more = True
    while more or held:
        while more and len(held) < capacity:
            request = next(needed, None)
            more = request is not None
            held += [request] if request is not None else []
            assert len(drawn) - len(emitted) - len(held) <= most
        if held:
            row = held.pop(random.randrange(len(held))).row
            text = str(row.prompt)
            failed = "no" if text == "broken" else None
            answer = OutputRow(row.index, text, output=text.upper(), error=failed)
            reuse.settle(EngineRequest(row, Rendered(text), [1], sampling=block), answer)
    emitted.sort(key=lambda row: row.index)
    assert [(row.index, row.output) for row in emitted] == [
        (index, text.upper()) for index, text in enumerate(texts)
    ]
    assert all((row.error is None) == (row.prompt != "broken") for row in emitted)


def test_a_run_of_answered_rows_hears_that_the_task_was_cancelled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(image_stream, "_LOOK_S", 0.0)
    emitted: list[OutputRow] = []
    context = ShardContext(emitted.append, lambda: len(emitted) > 300, lambda _: None)
    rows = (InputRow(index, "a") for index in range(5000))
    with pytest.raises(TaskCancelled):
        answer_rows(
            ShardInput("t", 0, 1, 7, rows, 5000), make_spec(None), CountingEngine(1), context
        )
    assert len(emitted) < 1000


def test_sampling_without_a_seed_is_never_shared() -> None:
    engine = CountingEngine()
    rows = run(["a", "a"], engine, {"temperature": 0.5})
    assert sorted(engine.asked) == [0, 1]
    assert rows[0].output != rows[1].output  # seeds of their own


def test_a_seed_makes_equal_rows_equal() -> None:
    engine = CountingEngine()
    rows = run(["a", "a", "b"], engine, {"temperature": 0.5, "seed": 11})
    assert sorted(engine.asked) == [0, 2]
    assert rows[0].output == rows[1].output == "A 11"


def test_options_and_adapters_of_rows_keep_them_apart() -> None:
    engine = CountingEngine()
    run(
        [
            "a",
            InputRow(0, "a", options={"max_tokens": 3}),
            InputRow(0, "a", options={"max_tokens": 4}),
            InputRow(0, "a", options={"max_tokens": 3}),
            InputRow(0, "a", adapter="x"),
            InputRow(0, "a", adapter="y"),
        ],
        engine,
    )
    assert sorted(engine.asked) == [0, 1, 2, 4, 5]


def test_what_the_model_reads_counts_and_each_row_keeps_its_own_prompt() -> None:
    engine = CountingEngine()
    chat = [Message("user", "a")]
    rows = run(["a", chat], engine)
    assert engine.asked == [0]
    assert rows[0].prompt == "a"
    assert rows[1].prompt == chat


def test_duplicates_of_a_failed_row_fail_with_it() -> None:
    engine = CountingEngine(capacity=2)
    rows = run(["broken", "broken", "a", "broken", "unreadable", "unreadable"], engine)
    assert sorted(engine.asked) == [0, 2]
    errors = [rows[index].error for index in range(6)]
    assert errors[0] == errors[1] == errors[3] == "the engine cannot digest this"
    assert errors[2] is None
    assert errors[4] == errors[5] == "cannot be read"
    assert rows[1].reused == ""
    assert rows[1].saved_s == 0


def test_vectors_of_equal_texts_are_computed_once() -> None:
    engine = CountingEngine()
    emitted: list[OutputRow] = []
    spec = EmbeddingSpec.model_validate({"taskType": "embedding", "model": MODEL, "data": DATA})
    rows = [InputRow(index, text) for index, text in enumerate(["a", "bb", "a"])]
    context = ShardContext(emitted.append, lambda: False, lambda _: None)
    answer_rows(ShardInput("t", 0, 1, 7, rows, 3), spec, engine, context)
    emitted.sort(key=lambda row: row.index)
    assert sorted(engine.asked) == [0, 1]
    assert [row.embedding for row in emitted] == [[1.0], [2.0], [1.0]]
