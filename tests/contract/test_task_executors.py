"""What every task executor owes to whoever runs its shards: the same suite over each of them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mloc_dagster.data import spool_input
from mloc_dagster.errors import TaskCancelled, TerminalError, TransientError
from mloc_dagster.executors import (
    ModelCache,
    ModelKey,
    ShardContext,
    ShardInput,
    ShardReport,
    run_shard,
    shard_run,
)
from mloc_dagster.planning import Plan
from mloc_dagster.results import Folder, OutputRow, list_parts, open_store, read_rows
from mloc_dagster.schema import spec_of

ROWS = 12
PROMPTS = [f"question {number}" + " and more" * (number % 4) for number in range(ROWS)]
TOO_LONG = "long " * 400


def go_on() -> bool:
    return False


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of 20 k parameters with a byte tokenizer and a chat template."""
    torch = pytest.importorskip("torch")
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.set_num_threads(1)
    special = ["<pad>", "<end>", "<system>", "<user>", "<assistant>"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: place for place, token in enumerate([*special, *letters])}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(special)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="<end>")
    tokenizer.chat_template = (
        "{%- for m in messages -%}<{{ m['role'] }}>{{ m['content'] }}<end>{%- endfor -%}<assistant>"
    )
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=256,
        initializer_range=0.4,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    folder = tmp_path_factory.mktemp("tiny-llama")
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


class Bench:
    """A task on a store in a temporary folder, and what it takes to run its shards."""

    def __init__(self, root: Path, spec: dict[str, Any], cache: ModelCache) -> None:
        self._root = root
        self._spec = spec
        self.cache = cache

    def task(self, name: str, shards: int, **changes: Any) -> tuple[Folder, Plan, Any]:
        document = {**self._spec, "data": {"type": "list", "items": PROMPTS}, **changes}
        spec = spec_of(document)
        folder = open_store(str(self._root)).task(name)
        return folder, spool_input(name, spec.data, folder, shards, 7, {}), spec

    def run(
        self,
        task: tuple[Folder, Plan, Any],
        shard: int = 0,
        *,
        attempt: int = 1,
        cancelled: Callable[[], bool] = go_on,
        **more: Any,
    ) -> ShardReport:
        folder, plan, spec = task
        return run_shard(
            folder,
            plan.task_id,
            spec,
            plan,
            plan.shards[shard],
            attempt=attempt,
            cache=self.cache,
            cancelled=cancelled,
            **more,
        )


def rows_of(task: tuple[Folder, Plan, Any]) -> list[OutputRow]:
    return list(read_rows(task[0]))


def lines_of(task: tuple[Folder, Plan, Any]) -> list[str]:
    folder = task[0]
    parts = [folder.read_bytes(part.name) for part in list_parts(folder)]
    return [line for part in parts for line in part.decode().splitlines()]


@pytest.fixture(scope="module")
def cache() -> Iterator[ModelCache]:
    models = ModelCache(1)
    yield models
    models.clear()


@pytest.fixture(params=["echo", "transformers"])
def engine(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def bench(engine: str, cache: ModelCache, tmp_path: Path, request: pytest.FixtureRequest) -> Bench:
    if engine == "echo":
        return Bench(tmp_path, {"taskType": "echo"}, cache)
    model = str(request.getfixturevalue("tiny_llama"))
    spec = {
        "taskType": "inference",
        "enforce_cpu": True,
        "model": {
            "source": {"type": "local", "identifier": model},
            "transformers": {"max_batch_size": 5},
        },
        "inference": {"max_tokens": 6, "temperature": 1.0},
    }
    return Bench(tmp_path, spec, cache)


def one_bad_row(engine: str) -> dict[str, Any]:
    """Changes to the spec after which row 4, and only that one, ends with an error."""
    if engine == "echo":
        return {"echo": {"poison": [4]}}
    return {"data": {"type": "list", "items": [*PROMPTS[:4], TOO_LONG, *PROMPTS[5:]]}}


@pytest.mark.parametrize("shards", [1, 5, ROWS])
def test_every_row_comes_exactly_once(bench: Bench, shards: int) -> None:
    task = bench.task("t", shards)
    seen: list[int] = []
    reports = [
        bench.run(task, shard, on_rows=lambda row: seen.append(row.index))
        for shard in range(shards)
    ]
    rows = rows_of(task)
    assert len(lines_of(task)) == ROWS
    assert [row.index for row in rows] == list(range(ROWS))
    assert [row.prompt for row in rows] == PROMPTS
    assert all(row.error is None and row.output for row in rows)
    assert sorted(seen) == list(range(ROWS))
    assert sum(report.rows_computed for report in reports) == ROWS
    assert sum(report.completion_tokens for report in reports) == sum(
        row.completion_tokens for row in rows
    )


def test_output_does_not_depend_on_the_sharding(bench: Bench) -> None:
    outputs: set[tuple[str, ...]] = set()
    for shards in (1, 3, ROWS):
        task = bench.task(f"by-{shards}", shards)
        for shard in range(shards):
            bench.run(task, shard)
        outputs.add(tuple(row.output for row in rows_of(task)))
    assert len(outputs) == 1


def test_a_cancelled_attempt_keeps_its_rows_and_the_next_computes_the_rest(
    bench: Bench, engine: str
) -> None:
    looks_every_row = {"echo": {"delay_s": 1e-4}} if engine == "echo" else {}
    task = bench.task("t", 1, **looks_every_row)
    done: list[int] = []
    stop = threading.Event()

    def count(row: OutputRow) -> None:
        done.append(row.index)
        if len(done) == 5:
            stop.set()

    with pytest.raises(TaskCancelled):
        bench.run(task, cancelled=stop.is_set, on_rows=count)
    kept = len(lines_of(task))
    assert 5 <= kept < ROWS
    assert kept == len(done)

    report = bench.run(task, attempt=2)
    assert (report.rows_resumed, report.rows_computed) == (kept, ROWS - kept)
    rows = rows_of(task)
    assert [row.index for row in rows] == list(range(ROWS))
    assert {row.index for row in rows if row.attempt == 1} == set(done)
    assert all(row.attempt == 2 for row in rows if row.index not in done)

    again = bench.run(task, attempt=3)
    assert (again.rows_resumed, again.rows_computed, again.engine) == (ROWS, 0, "")
    log = task[0].read_bytes("logs/shard-0000.log").decode()
    assert "attempt 1" in log
    assert "cancelled" in log
    assert "attempt 3" in log


def test_a_task_cancelled_before_it_starts_loads_nothing(bench: Bench) -> None:
    task = bench.task("t", 1)
    with pytest.raises(TaskCancelled):
        bench.run(task, cancelled=lambda: True)
    assert lines_of(task) == []


def test_a_row_that_cannot_be_computed_ends_with_an_error_alone(bench: Bench, engine: str) -> None:
    task = bench.task("t", 1, **one_bad_row(engine))
    report = bench.run(task)
    rows = rows_of(task)
    assert report.errors == 1
    assert [row.index for row in rows if row.error is not None] == [4]
    assert rows[4].finish_reason == "error"
    assert rows[4].output == ""
    assert "row 4" in task[0].read_bytes("logs/shard-0000.log").decode()


def test_rows_with_errors_are_computed_again_only_when_asked(bench: Bench, engine: str) -> None:
    task = bench.task("t", 1, **one_bad_row(engine))
    bench.run(task)
    assert bench.run(task, attempt=2).rows_computed == 0
    assert bench.run(task, attempt=3, retry_errors=True).rows_computed == 1


def test_rows_say_who_computed_them(bench: Bench) -> None:
    task = bench.task("t", 2)
    report = bench.run(task, 1, attempt=4)
    assert report.attempt == 4
    for text in lines_of(task):
        assert f'"worker":"{report.worker}"' in text
        assert f'"engine":"{report.engine}"' in text
        assert '"attempt":4' in text
    assert report.worker.rpartition(":")[2].isdigit()
    assert report.started_at <= report.finished_at


class Misbehaving:
    """An executor that gives the indexes it was told to, or raises."""

    def __init__(self, indexes: list[int], error: Exception | None = None) -> None:
        self._indexes = indexes
        self._error = error

    def model_key(self, spec: object) -> ModelKey | None:
        return None

    def load(self, spec: object) -> None:
        return None

    def unload(self, model: None) -> None:
        return None

    def run(self, shard: ShardInput, spec: object, model: None, context: ShardContext) -> None:
        list(shard.rows)
        for index in self._indexes:
            context.emit(OutputRow(index=index, prompt=""))
        if self._error is not None:
            raise self._error


@pytest.mark.parametrize(
    ("indexes", "message"),
    [
        ([0, 1, 1], "row 1 to shard 0000, a second time"),
        ([0, 12], "row 12 to shard 0000, whose rows are 0 to 11"),
        ([-1], "row -1 to shard 0000"),
        ([0, 2, 3], r"without row 1, 4, 5, 6, 7, 8, 9, 10, 11 of shard 0000"),
    ],
)
def test_an_executor_that_breaks_the_protocol_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, indexes: list[int], message: str
) -> None:
    monkeypatch.setattr(shard_run, "task_executor", lambda _: Misbehaving(indexes))
    bench = Bench(tmp_path, {"taskType": "echo"}, ModelCache(1))
    task = bench.task("t", 1)
    with pytest.raises(TerminalError, match=message):
        bench.run(task)
    assert "failed: TerminalError" in task[0].read_bytes("logs/shard-0000.log").decode()


def test_a_foreign_exception_may_be_retried_and_finished_rows_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = Misbehaving([3, 4], KeyError("surprise"))
    monkeypatch.setattr(shard_run, "task_executor", lambda _: broken)
    bench = Bench(tmp_path, {"taskType": "echo"}, ModelCache(1))
    task = bench.task("t", 1)
    with pytest.raises(TransientError, match="KeyError: 'surprise'"):
        bench.run(task)
    assert len(lines_of(task)) == 2
