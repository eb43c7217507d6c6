"""Answers of earlier tasks are taken when model, prompt and sampling are the same to the byte."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mloc_dagster.executors.base import ShardContext, ShardInput
from mloc_dagster.executors.engines.protocol import EngineRequest, Replies
from mloc_dagster.executors.inference import answer_rows
from mloc_dagster.executors.reuse_identity import LoadedFiles, file_stamps, remember_files
from mloc_dagster.results import InputRow, OutputRow
from mloc_dagster.schema import spec_of
from tests.unit.executors.test_row_reuse import CountingEngine

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "tokenizer.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights" * 100)
    return folder


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text("{}")
    (folder / "adapter_model.safetensors").write_bytes(b"delta")
    return folder


class Task:
    """What a task is, with one thing changed by each test."""

    def __init__(self, model: Path, adapter: Path) -> None:
        self.engine = CountingEngine()
        self.log: list[str] = []
        self.document: dict[str, Any] = {
            "taskType": "inference",
            "reuse": True,
            "model": {
                "engine": "transformers",
                "source": {"type": "local", "identifier": str(model)},
                "adapters": [{"path": str(adapter)}],
            },
            "data": {"type": "list", "items": ["unused"]},
            "inference": {"temperature": 0, "max_tokens": 20},
        }

    def run(self, prompts: tuple[str, ...] = ("a", "b"), *, load: bool = True) -> list[OutputRow]:
        spec = spec_of(self.document)
        emitted: list[OutputRow] = []
        rows = [InputRow(index, prompt, f"id {index}") for index, prompt in enumerate(prompts)]
        if load:
            remember_files(self.engine, LoadedFiles(file_stamps(spec)))
        self.engine.asked.clear()
        self.log.clear()
        context = ShardContext(emitted.append, lambda: False, self.log.append)
        answer_rows(ShardInput("t", 0, 1, 7, rows, len(rows)), spec, self.engine, context)
        return sorted(emitted, key=lambda row: row.index)

    def hits(self, **options: Any) -> int:
        return sum(row.reused == "cache" for row in self.run(**options))


@pytest.fixture
def task(model: Path, adapter: Path) -> Task:
    warm = Task(model, adapter)
    assert warm.hits() == 0
    return warm


def test_a_second_task_takes_what_the_first_computed(task: Task) -> None:
    first = task.run(("c", "d", "c"))
    again = task.run(("d", "new", "c", "c"))
    assert task.engine.asked == [1]
    assert [row.reused for row in again] == ["cache", "", "cache", "cache"]
    assert [row.output for row in again] == ["D", "NEW", "C", "C"]
    hit = again[0]
    assert (hit.prompt, hit.custom_id, hit.index) == ("d", "id 0", 0)
    assert (hit.engine_s, hit.saved_s) == (0.0, first[1].engine_s)
    assert hit.engine == task.engine.label
    assert (hit.prompt_tokens, hit.completion_tokens) == (1, first[1].completion_tokens)


def test_without_reuse_nothing_is_kept_or_taken(task: Task) -> None:
    task.document["reuse"] = False
    assert task.hits() == 0
    task.run(("other",))
    task.document["reuse"] = True
    assert task.hits(prompts=("other",)) == 0


def change_label(task: Task) -> None:
    task.engine.label = "counting 2"


def change_revision(task: Task) -> None:
    task.engine.revision = "sha256:1"


def change_device(task: Task) -> None:
    task.engine.device = "cuda:0"


def change(*path: str, to: Any) -> Callable[[Task], None]:
    def make(task: Task) -> None:
        block = task.document
        for step in path[:-1]:
            block = block.setdefault(step, {})
        block[path[-1]] = to

    return make


def rewrite(name: str, content: bytes) -> Callable[[Task], None]:
    def make(task: Task) -> None:
        folder = Path(task.document["model"]["source"]["identifier"])
        (folder / name).write_bytes(content)

    return make


def rewrite_keeping_size_and_times(task: Task) -> None:
    path = Path(task.document["model"]["source"]["identifier"]) / "model.safetensors"
    before = path.stat()
    path.write_bytes(b"Weights" * 100)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def rewrite_adapter(task: Task) -> None:
    folder = Path(task.document["model"]["adapters"][0]["path"])
    (folder / "adapter_model.safetensors").write_bytes(b"other")


@pytest.mark.parametrize(
    "make",
    [
        change_label,
        change_revision,
        change_device,
        change("inference", "temperature", to=0.5),
        change("inference", "max_tokens", to=21),
        change("inference", "system_prompt", to="be brief"),
        change("inference", "stop", to=["x"]),
        change("model", "transformers", "dtype", to="float32"),
        change("model", "transformers", "attn_implementation", to="eager"),
        change("model", "vllm", "max_model_len", to=100),
        change("model", "vllm", "quantization", to="fp8"),
        change("model", "adapters", to=[]),
        rewrite("model.safetensors", b"other weights"),
        rewrite("tokenizer.json", b"[]"),
        rewrite("config.json", b"[]"),
        rewrite("generation_config.json", b"{}"),
        rewrite_keeping_size_and_times,
        rewrite_adapter,
    ],
)
def test_any_single_change_is_a_miss(task: Task, make: Callable[[Task], None]) -> None:
    assert task.hits() == 2
    make(task)
    if task.document["inference"]["temperature"]:
        task.document["inference"]["seed"] = 1
    assert task.hits() == 0
    assert task.hits() == 2  # it is a cache of its own from here on


@pytest.mark.parametrize(
    "make",
    [
        change("model", "transformers", "max_batch_size", to=3),
        change("inference", "error_budget", to=0.5),
        change("output", "formats", to=["jsonl"]),
        change("inference", "seed", to=5),  # greedy: no seed counts
    ],
)
def test_what_changes_no_answer_is_a_hit(task: Task, make: Callable[[Task], None]) -> None:
    make(task)
    assert task.hits() == 2


def test_seeds_count_where_sampling_is_random(task: Task) -> None:
    task.document["inference"] |= {"temperature": 0.5, "seed": 1}
    assert (task.hits(), task.hits()) == (0, 2)
    task.document["inference"]["seed"] = 2
    assert (task.hits(), task.hits()) == (0, 2)
    del task.document["inference"]["seed"]
    assert (task.hits(), task.hits()) == (0, 0)


def test_a_warm_model_whose_files_changed_is_not_reused(task: Task) -> None:
    """The engine still has the old weights; nobody can say what these files answer."""
    rewrite("model.safetensors", b"other weights")(task)
    assert task.hits(load=False) == 0
    assert "reuse: off: the model's files are not those" in task.log[0]
    assert task.hits() == 0  # nothing was kept of it either


def test_files_that_change_while_the_engine_runs_keep_its_answers_out(
    task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = task.engine.run

    def run(requests: Iterator[EngineRequest], replies: Replies) -> None:
        real(requests, replies)
        rewrite("model.safetensors", b"other weights")(task)

    monkeypatch.setattr(task.engine, "run", run)
    task.run(("late",))
    monkeypatch.undo()
    rewrite("model.safetensors", b"weights" * 100)(task)
    assert task.hits(prompts=("late",)) == 0
    assert task.hits() == 2  # the bytes are the old ones again


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda task: setattr(task.engine, "revision", ""), "does not know the model's revision"),
        (change("model", "source", "trust_remote_code", to=True), "no revision of its own"),
        (change("model", "source", to={"identifier": "org/name"}), "no commit of the hub"),
        (change("model", "adapters", to=[{"url": "http://host/a.zip"}]), "http://host/a.zip"),
        (change("model", "vllm", "tokenizer", to="org/other"), "model.vllm.tokenizer"),
    ],
)
def test_what_is_not_known_exactly_is_not_reused(
    task: Task, make: Callable[[Task], None], reason: str
) -> None:
    make(task)
    assert (task.hits(), task.hits()) == (0, 0)
    assert reason in task.log[0]


def test_a_commit_of_the_hub_is_known_exactly(task: Task) -> None:
    task.document["model"]["source"] = {"identifier": "org/name"}
    task.engine.revision = COMMIT
    assert (task.hits(), task.hits()) == (0, 2)


def test_an_answer_that_the_engine_cut_short_is_not_kept(
    task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.unit.executors import test_row_reuse as double

    real = double.Answer
    monkeypatch.setattr(double, "Answer", lambda text, _, tokens: real(text, "length", tokens))
    assert (task.hits(prompts=("cut",)), task.hits(prompts=("cut",))) == (0, 0)
    full = "x" * 20
    assert (task.hits(prompts=(full,)), task.hits(prompts=(full,))) == (0, 1)
