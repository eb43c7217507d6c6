"""What every engine that takes calls owes to those who wait, over transformers and vLLM."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pytest

from mloc_dagster.errors import TaskCancelled
from mloc_dagster.executors import (
    AnswersCalls,
    Caller,
    Engine,
    InferenceExecutor,
    ShardContext,
    ShardInput,
    loader_of,
)
from mloc_dagster.results import InputRow, OutputRow
from mloc_dagster.schema import EmbeddingSpec, InferenceSpec, find_engine

pytest.importorskip("torch")

# vLLM 0.32 calls xgrammar in a way that xgrammar has left behind.
pytestmark = pytest.mark.filterwarnings("ignore:max_rollback_tokens is deprecated")

CAPITAL = "What is the capital of France?"
DRAGONS = "Tell me about dragons."
NONSENSE = "the a of to"
VLLM = pytest.param("vllm", marks=pytest.mark.slow)
EXECUTOR = InferenceExecutor()


def spec_of(engine: str, **inference: Any) -> InferenceSpec:
    return InferenceSpec.model_validate(
        {
            "taskType": "inference",
            "enforce_cpu": True,
            "model": {
                "source": {"type": "builtin", "identifier": "tiny-chat"},
                "engine": engine,
                "vllm": {"max_num_seqs": 4} if engine == "vllm" else {},
                "transformers": {"max_batch_size": 4} if engine == "transformers" else {},
            },
            "data": {"type": "list", "items": ["unused"]},
            "inference": {"temperature": 0, "max_tokens": 24, **inference},
        }
    )


@dataclass
class Loaded:
    """An engine, and specs for it."""

    name: str
    engine: Engine

    def spec(self, **inference: Any) -> InferenceSpec:
        return spec_of(self.name, **inference)

    def ask(
        self,
        *prompts: str,
        text: Callable[[int, str], None] | None = None,
        cancelled: Callable[[], bool] = lambda: False,
        **inference: Any,
    ) -> list[OutputRow]:
        caller = Caller(text or (lambda *_: None), cancelled, stream=text is not None)
        rows = [InputRow(index, prompt) for index, prompt in enumerate(prompts)]
        return list(EXECUTOR.answer(rows, self.spec(**inference), self.engine, caller))

    def shard(
        self,
        rows: Iterator[InputRow],
        emit: Callable[[OutputRow], None],
        cancelled: Callable[[], bool] = lambda: False,
        **inference: Any,
    ) -> None:
        context = ShardContext(emit, cancelled, lambda _: None)
        EXECUTOR.run(
            ShardInput("t", 0, 1, 7, rows, 0), self.spec(**inference), self.engine, context
        )

    def batch(self, *prompts: str, **inference: Any) -> list[OutputRow]:
        emitted: list[OutputRow] = []
        rows = iter([InputRow(index, prompt) for index, prompt in enumerate(prompts)])
        self.shard(rows, emitted.append, **inference)
        return sorted(emitted, key=lambda row: row.index)


@pytest.fixture(scope="module", params=["transformers", VLLM])
def loaded(request: pytest.FixtureRequest) -> Iterator[Loaded]:
    import torch

    name = request.param
    if name == "vllm":
        pytest.importorskip("vllm", exc_type=ImportError)
    torch.set_num_threads(1)
    engine = loader_of(find_engine(name)).load(spec_of(name))
    yield Loaded(name, engine)
    engine.close()


def said_by(row: OutputRow) -> tuple[Any, ...]:
    """What a row says, without what it cost."""
    return (
        row.index,
        row.output,
        row.outputs,
        row.finish_reason,
        row.finish_reasons,
        row.error,
        row.fault,
        row.prompt_tokens,
        row.completion_tokens,
        row.engine,
    )


@dataclass
class Pieces:
    """Collects what a caller is told."""

    of: dict[int, list[str]] = field(default_factory=dict)

    def __call__(self, number: int, text: str) -> None:
        self.of.setdefault(number, []).append(text)

    def texts(self) -> list[str]:
        return ["".join(self.of[number]) for number in sorted(self.of)]


class BusyShard:
    """A shard in a thread of its own, which computes until it is told to end.

    Args:
        loaded: The engine.
        rows: How many it has; a few are computed at once.
        inference: How.
    """

    def __init__(self, loaded: Loaded, rows: int = 8, **inference: Any) -> None:
        self.emitted: list[OutputRow] = []
        self._loaded = loaded
        self._count = rows
        self._inference = {"ignore_eos": True, "max_tokens": 120, **inference}
        self.computing = threading.Event()
        self.cancel = threading.Event()
        self._pool = ThreadPoolExecutor(1)

    def prompts(self) -> list[str]:
        return [f"What is {number} + 2?" for number in range(self._count)]

    def alone(self) -> list[OutputRow]:
        return self._loaded.batch(*self.prompts(), **self._inference)

    def __enter__(self) -> BusyShard:
        self._future = self._pool.submit(self._run)
        assert self.computing.wait(300)
        return self

    def __exit__(self, *_: object) -> None:
        self.cancel.set()
        self._pool.shutdown()

    @property
    def ended(self) -> bool:
        return self._future.done()

    def rows(self) -> list[OutputRow]:
        self._future.result(300)
        return sorted(self.emitted, key=lambda row: row.index)

    def _run(self) -> None:
        def cancelled() -> bool:  # asked between steps: the engine works
            self.computing.set()
            return self.cancel.is_set()

        rows = iter([InputRow(index, prompt) for index, prompt in enumerate(self.prompts())])
        self._loaded.shard(rows, self.emitted.append, cancelled, **self._inference)


def test_the_executor_answers_calls() -> None:
    assert isinstance(EXECUTOR, AnswersCalls)


def test_an_answer_is_that_of_a_batch(loaded: Loaded) -> None:
    ways: list[dict[str, Any]] = [
        {},
        {"n": 3},
        {"temperature": 1.2, "seed": 5, "n": 2},
        {"stop": ["not"]},
        {"max_tokens": 2},
        {"logprobs": 2},
        {"structured_outputs": {"choice": ["Rome", "Oslo"]}},
        {"system_prompt": "Be kind."},
    ]
    for way in ways:
        prompts = [CAPITAL, DRAGONS, "", NONSENSE, "a " * 3000]
        asked, batch = loaded.ask(*prompts, **way), loaded.batch(*prompts, **way)
        assert list(map(said_by, asked)) == list(map(said_by, batch)), way
        assert [each.logprobs is None for each in asked] == [
            each.logprobs is None for each in batch
        ]
        assert [bool(each.error) for each in asked] == [False, False, True, False, True]


def test_a_row_says_in_its_error_what_a_batchs_says(loaded: Loaded) -> None:
    caller = Caller(lambda *_: None, lambda: False)
    rows = [
        InputRow(3, CAPITAL, options={"temperatur": 1}),
        InputRow(1, CAPITAL, adapter="nobody"),
        InputRow(2, CAPITAL, custom_id="c"),
    ]
    wrong, adapter, right = EXECUTOR.answer(rows, loaded.spec(), loaded.engine, caller)
    assert "temperatur" in (wrong.error or "")
    assert "no adapter is called 'nobody'" in (adapter.error or "")
    assert (right.output, right.custom_id, right.index) == ("Paris", "c", 2)


@pytest.mark.parametrize(
    "way",
    [
        {},
        {"stop": ["know", "never there"]},
        {"stop": ["o not kn"]},
        {"stop": "I", "min_tokens": 1, "max_tokens": 6},
        {"temperature": 1.5, "seed": 4, "n": 3},
        {"temperature": 2.0, "seed": 9, "max_tokens": 100, "ignore_eos": True},
        {"n": 2},
    ],
)
def test_pieces_are_the_text(loaded: Loaded, way: dict[str, Any]) -> None:
    for prompt in (DRAGONS, NONSENSE, "東京 🎉"):
        pieces = Pieces()
        (row,) = loaded.ask(prompt, text=pieces, **way)
        assert pieces.texts() == [each for each in row.outputs or [row.output] if each]
        assert said_by(row) == said_by(*loaded.batch(prompt, **way))
        assert all(piece for each in pieces.of.values() for piece in each)
        if not way:
            assert not any("\ufffd" in piece for each in pieces.of.values() for piece in each)


def test_text_comes_while_it_is_generated(loaded: Loaded) -> None:
    pieces = Pieces()
    (row,) = loaded.ask(DRAGONS, text=pieces, max_tokens=40, ignore_eos=True)
    assert len(pieces.of[0]) >= 5
    assert "".join(pieces.of[0]) == row.output


def test_choices_of_several_rows_are_numbered_one_after_another(loaded: Loaded) -> None:
    pieces = Pieces()
    rows = loaded.ask(CAPITAL, DRAGONS, text=pieces, n=2)
    assert sorted(pieces.of) == [0, 1, 2, 3]
    assert pieces.texts() == [*(rows[0].outputs or []), *(rows[1].outputs or [])]


def test_a_call_is_answered_while_a_shard_runs_whose_rows_stay_the_same(loaded: Loaded) -> None:
    for way in ({}, {"temperature": 1.3, "seed": 3}):
        with BusyShard(loaded, **way) as shard:
            pieces = Pieces()
            answers = [loaded.ask(CAPITAL)[0], loaded.ask(DRAGONS, text=pieces)[0]]
            assert not shard.ended
            assert [each.output for each in answers] == ["Paris", "I do not know."]
            assert "".join(pieces.of[0]) == "I do not know."
            rows = shard.rows()
        assert list(map(said_by, rows)) == list(map(said_by, BusyShard(loaded, **way).alone()))
        assert [row.index for row in rows] == list(range(8))


def test_several_callers_are_answered_beside_a_shard(loaded: Loaded) -> None:
    asked = [f"What is {number} + 1?" for number in range(6)]
    expected = [row.output for row in loaded.batch(*asked)]
    with BusyShard(loaded) as shard, ThreadPoolExecutor(6) as callers:
        futures = [callers.submit(loaded.ask, prompt) for prompt in asked]
        answers = [future.result(300)[0] for future in futures]
        rows = shard.rows()
    assert [each.output for each in answers] == expected
    assert list(map(said_by, rows)) == list(map(said_by, BusyShard(loaded).alone()))


def test_several_callers_share_an_idle_engine(loaded: Loaded) -> None:
    """Whoever is in the middle of an answer keeps nobody from beginning theirs."""
    began: set[int] = set()
    began_by_first_end: list[int] = []
    start = threading.Barrier(3, timeout=300)

    def ask(number: int) -> str:
        start.wait()
        (row,) = loaded.ask(
            NONSENSE, text=lambda *_: began.add(number), max_tokens=200, ignore_eos=True
        )
        began_by_first_end.append(len(began))
        return row.output

    with ThreadPoolExecutor(3) as callers:
        texts = [each.result(300) for each in [callers.submit(ask, number) for number in range(3)]]
    assert began_by_first_end[0] == 3
    assert len(set(texts)) == 1


def test_a_caller_who_hangs_up_stops_the_computing(loaded: Loaded) -> None:
    pieces = Pieces()

    def ask() -> None:
        loaded.ask(
            NONSENSE,
            text=pieces,
            cancelled=lambda: bool(pieces.of),
            max_tokens=900,
            ignore_eos=True,
        )

    with pytest.raises(TaskCancelled):
        ask()
    assert loaded.ask(CAPITAL)[0].output == "Paris"
    pieces.of.clear()
    with BusyShard(loaded) as shard:
        with pytest.raises(TaskCancelled):
            ask()
        assert loaded.ask(CAPITAL)[0].output == "Paris"
        rows = shard.rows()
    assert list(map(said_by, rows)) == list(map(said_by, BusyShard(loaded).alone()))


def test_a_callers_own_error_ends_its_call_alone(loaded: Loaded) -> None:
    def text(number: int, piece: str) -> None:
        raise ConnectionError("the socket is closed")

    with BusyShard(loaded) as shard:
        with pytest.raises(ConnectionError, match="socket is closed"):
            loaded.ask(NONSENSE, text=text, max_tokens=900, ignore_eos=True)
        assert len(shard.rows()) == 8
    assert [row.error for row in shard.rows()] == [None] * 8


def test_a_call_goes_on_when_the_shard_is_cancelled(loaded: Loaded) -> None:
    pieces = Pieces()
    with BusyShard(loaded, rows=200) as shard, ThreadPoolExecutor(1) as callers:

        def text(number: int, piece: str) -> None:
            shard.cancel.set()
            pieces(number, piece)

        future = callers.submit(loaded.ask, NONSENSE, text=text, max_tokens=150, ignore_eos=True)
        (row,) = future.result(300)
        with pytest.raises(TaskCancelled):
            shard.rows()
    assert row.output == "".join(pieces.of[0])
    assert row.output == loaded.batch(NONSENSE, max_tokens=150, ignore_eos=True)[0].output


def test_calls_without_end_do_not_starve_a_shard(loaded: Loaded) -> None:
    """Callers who ask again and again beside a shard: it ends nevertheless."""
    with BusyShard(loaded, max_tokens=60) as shard, ThreadPoolExecutor(3) as callers:
        ended = threading.Event()

        def ask_on() -> int:
            asked = 0
            while not ended.is_set():
                assert loaded.ask(DRAGONS)[0].output == "I do not know."
                asked += 1
            return asked

        futures = [callers.submit(ask_on) for _ in range(3)]
        try:
            assert len(shard.rows()) == 8
        finally:
            ended.set()
        assert all(future.result(300) for future in futures)


@pytest.mark.parametrize("name", ["transformers", VLLM])
def test_texts_are_embedded_beside_a_shard(name: str) -> None:
    if name == "vllm":
        pytest.importorskip("vllm", exc_type=ImportError)
    spec = EmbeddingSpec.model_validate(
        {
            "taskType": "embedding",
            "enforce_cpu": True,
            "model": {
                "source": {"type": "builtin", "identifier": "tiny-chat"},
                "engine": name,
                "transformers": {"max_batch_size": 2} if name == "transformers" else {},
            },
            "data": {"type": "list", "items": ["unused"]},
        }
    )
    engine = loader_of(find_engine(name)).load(spec)
    answered: list[OutputRow] = []
    emitted: list[OutputRow] = []
    computing = threading.Event()

    def emit(row: OutputRow) -> None:
        emitted.append(row)
        computing.set()

    def endless() -> Iterator[InputRow]:
        number = 0
        while not answered:
            yield InputRow(number, f"text number {number}")
            number += 1

    context = ShardContext(emit, lambda: False, lambda _: None)
    rows = [InputRow(0, "Hello"), InputRow(1, ""), InputRow(2, "text number 1")]
    caller = Caller(lambda *_: None, lambda: False, stream=True)
    try:
        with ThreadPoolExecutor(1) as pool:
            shard = pool.submit(
                EXECUTOR.run, ShardInput("t", 0, 1, 7, endless(), 0), spec, engine, context
            )
            assert computing.wait(300)
            answered += EXECUTOR.answer(rows, spec, engine, caller)
            shard.result(300)
        alone = EXECUTOR.answer(rows, spec, engine, caller)
    finally:
        engine.close()
    assert [row.error for row in answered] == [None, "the prompt is empty", None]
    assert [row.error for row in alone] == [None, "the prompt is empty", None]
    assert answered[0].embedding == pytest.approx(alone[0].embedding, abs=1e-5)
    by_index = {row.index: row for row in emitted}
    assert answered[2].embedding == pytest.approx(by_index[1].embedding, abs=1e-5)
    assert sorted(by_index) == list(range(len(emitted)))


@pytest.mark.slow
def test_a_call_to_another_engine_of_the_process_waits_for_no_shard() -> None:
    pytest.importorskip("vllm", exc_type=ImportError)
    first, second = (
        Loaded("vllm", loader_of(find_engine("vllm")).load(spec_of("vllm"))) for _ in range(2)
    )
    try:
        with BusyShard(first) as shard:
            pieces = Pieces()
            assert second.ask(DRAGONS, text=pieces)[0].output == "I do not know."
            assert not shard.ended
            assert first.ask(CAPITAL)[0].output == "Paris"
            rows = shard.rows()
        assert list(map(said_by, rows)) == list(map(said_by, BusyShard(first).alone()))
    finally:
        first.engine.close()
        second.engine.close()
