"""`mloc batch` as a person types it, killed in the middle too."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

pytest.importorskip("torch")

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

PATIENCE_S = 600

CONTEXT = 1024
"""Tokens that tiny-chat reads and writes at most."""


class Place:
    """A folder to work in, on the session's database."""

    def __init__(self, folder: Path, home: Path) -> None:
        self.folder = folder
        self.results = folder / "results"
        self.environment = {
            **{name: value for name, value in os.environ.items() if name != "DAGSTER_HOME"},
            "MLOC_HOME": str(home),
            "MLOC_RESULTS_URL": str(self.results),
            "MLOC_FLUSH_ROWS": "1",
            "OMP_NUM_THREADS": "1",
        }

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "mloc_dagster.cli", "batch", *arguments, "--no-progress"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=self.environment,
            cwd=self.folder,
        )

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        process = self.start(*arguments)
        out, err = process.communicate(timeout=PATIENCE_S)
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)

    def write(self, name: str, *requests: dict[str, Any]) -> str:
        path = self.folder / name
        path.write_text("".join(f"{json.dumps(each)}\n" for each in requests))
        return name

    def lines(self, name: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / name).read_text().splitlines()]


@pytest.fixture
def place(session_home: Path, session_instance: dg.DagsterInstance, tmp_path: Path) -> Place:
    return Place(tmp_path, session_home)


def chat(custom_id: str, text: str, **body: object) -> dict[str, Any]:
    given = {
        "model": "gpt-4o-mini",
        "messages": [{"role": "user", "content": text}],
        "temperature": 0,
        "max_tokens": 12,
        **body,
    }
    return {
        "custom_id": custom_id,
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": given,
    }


def content(line: dict[str, Any]) -> str:
    return line["response"]["body"]["choices"][0]["message"]["content"]


def test_a_batch_with_requests_that_cannot_be_answered(place: Place) -> None:
    source = place.write(
        "in.jsonl",
        chat("france", "What is the capital of France?", logprobs=True, top_logprobs=1),
        chat("streamed", "x", stream=True),
        chat("japan", "What is the capital of Japan?", n=2),
        chat("hot", "x", temperature=7),
    )
    done = place.run(source, "-m", "tiny-chat", "-o", "out.jsonl", "--engine", "transformers")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-2:] == ["out.errors.jsonl", "out.jsonl"]
    assert "2 requests failed" in done.stdout

    france, japan = place.lines("out.jsonl")
    assert (france["custom_id"], japan["custom_id"]) == ("france", "japan")
    assert content(france) == "Paris"
    assert [each["message"]["content"] for each in japan["response"]["body"]["choices"]] == [
        "Tokyo",
        "Tokyo",
    ]
    assert france["response"]["body"]["choices"][0]["logprobs"]["content"]
    failed = place.lines("out.errors.jsonl")
    assert [each["custom_id"] for each in failed] == ["streamed", "hot"]
    assert [each["error"] for each in failed] == [None, None], "the responses say it"
    told = [each["response"]["body"]["error"]["message"] for each in failed]
    assert "never streamed" in told[0]
    assert "'temperature'" in told[1]

    before = (place.folder / "out.jsonl").read_bytes()
    again = place.run(source, "-m", "tiny-chat", "-o", "out.jsonl", "--engine", "transformers")
    assert again.returncode == 0, again.stderr
    assert "4 rows are there" in again.stderr
    assert (place.folder / "out.jsonl").read_bytes() == before


def test_an_answer_without_max_tokens_ends_where_the_context_does(place: Place) -> None:
    asked = [
        chat("short", "What is the capital of France?"),
        chat("long", "a " * 990, ignore_eos=True),
        chat("endless", "What is 2 plus 2?", ignore_eos=True),
    ]
    for request in asked:
        del request["body"]["max_tokens"]
    source = place.write("in.jsonl", *asked)
    done = place.run(source, "-m", "tiny-chat", "-o", "out.jsonl", "--engine", "transformers")
    assert done.returncode == 0, done.stderr
    short, *others = place.lines("out.jsonl")
    assert content(short) == "Paris"
    for line in others:
        (choice,) = line["response"]["body"]["choices"]
        assert choice["finish_reason"] == "length"
        assert line["response"]["body"]["usage"]["total_tokens"] == CONTEXT
    assert others[0]["response"]["body"]["usage"]["completion_tokens"] < 100


ONE_AT_A_TIME = {
    "transformers": ("spec.model.transformers.max_batch_size=1",),
    "vllm": (
        "spec.model.vllm.max_num_seqs=1",
        f"spec.model.vllm.kv_cache_memory_bytes={256 << 20}",
    ),
}
"""Slow enough to be met in the middle, and no answer depends on what runs beside it."""


KILLED = 150
"""Requests of a batch that is killed as soon as one is answered, and gone on with."""

OUTLASTING = 1200
"""Requests of a batch that runs for as long as two commands need to be refused."""


def slow_batch(place: Place, engine: str, count: int) -> tuple[str, ...]:
    """Writes a batch of requests; returns the command that answers it row by row."""
    texts = [f"What is {index} plus 4?" for index in range(count)]
    requests = [chat(f"q{index}", text, max_tokens=40) for index, text in enumerate(texts)]
    source = place.write("in.jsonl", *requests)
    sets = [word for each in ONE_AT_A_TIME[engine] for word in ("--set", each)]
    return (source, "-m", "tiny-chat", "-o", "out.jsonl", "--engine", engine, *sets)


def wait_for_rows(place: Place, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not list(place.results.glob("*/shards/*/part-*")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "no row was ever finished"
        time.sleep(0.02)


def kill(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGKILL)
    process.communicate()


@pytest.mark.parametrize("engine", ["transformers", "vllm"])
def test_a_kill_costs_nothing_that_was_done(place: Place, engine: str) -> None:
    pytest.importorskip(engine, exc_type=ImportError)
    command = slow_batch(place, engine, KILLED)
    process = place.start(*command)
    wait_for_rows(place, process)
    kill(process)
    assert not (place.folder / "out.jsonl").exists()
    kept = {path: path.read_bytes() for path in place.results.glob("*/shards/*/part-*")}
    there = sum(data.count(b"\n") for data in kept.values())
    assert 0 < there < KILLED, "it was killed in the middle"

    done = place.run(*command)
    assert done.returncode == 0, done.stderr
    assert f"{there} rows are there (--fresh starts over)" in done.stderr
    assert all(path.read_bytes() == data for path, data in kept.items())
    assert "engine time" in done.stdout
    lines = place.lines("out.jsonl")
    assert [line["custom_id"] for line in lines] == [f"q{index}" for index in range(KILLED)]
    assert place.lines("out.errors.jsonl") == []
    assert len(list(place.results.glob("*/task.json"))) == 1
    assert not list(place.folder.glob(".*.part"))

    if engine == "vllm":  # starting over is the same for both, and vLLM starts slowly
        return
    fresh = place.run(*command, "--fresh")
    assert fresh.returncode == 0, fresh.stderr
    assert [content(line) for line in place.lines("out.jsonl")] == [content(line) for line in lines]


def test_a_batch_that_runs_is_left_alone_by_the_same_command(place: Place) -> None:
    command = slow_batch(place, "transformers", OUTLASTING)
    process = place.start(*command)
    try:
        wait_for_rows(place, process)
        (plan,) = place.results.glob("*/plan.json")
        plan.rename(place.folder / "plan.json")  # as if it were still reading its input
        for more in ((), ("--fresh",)):
            second = place.run(*command, *more)
            assert second.returncode == 2, second.stderr
            assert f"is running in process {process.pid}" in second.stderr
        assert plan.with_name("task.json").exists()
        assert list(plan.parent.glob("shards/*/part-*"))
        assert process.poll() is None
    finally:
        kill(process)


def test_of_two_commands_at_once_one_answers_the_batch(place: Place) -> None:
    source = place.write("in.jsonl", *(chat(f"q{index}", f"Say {index}") for index in range(40)))
    command = (source, "-m", "tiny-chat", "-o", "out.jsonl", "--engine", "transformers")
    both = [place.start(*command) for _ in range(2)]
    said = {each.pid: each.communicate(timeout=PATIENCE_S)[1] for each in both}
    done, refused = sorted(both, key=lambda each: each.returncode)
    assert (done.returncode, refused.returncode) == (0, 2), said
    assert f"is running in process {done.pid}" in said[refused.pid]
    rows = [path.read_bytes().count(b"\n") for path in place.results.glob("*/shards/*/part-*")]
    assert sum(rows) == 40, "none was computed twice"
    assert len(place.lines("out.jsonl")) == 40


def test_a_workflow_of_several_tasks_is_no_batch(place: Place) -> None:
    template = place.folder / "two.yaml"
    template.write_text(TWO_TASKS)
    run = [sys.executable, "-m", "mloc_dagster.cli", "run", str(template), "--json"]
    ran = subprocess.run(
        run, capture_output=True, text=True, env=place.environment, cwd=place.folder, check=True
    )
    workflow = json.loads(ran.stdout)["workflow_id"]
    before = sorted(place.results.rglob("*"))
    done = place.start("--resume", workflow, "-o", "out.jsonl")
    _, err = done.communicate(timeout=PATIENCE_S)
    assert done.returncode == 2
    assert f"{workflow} is a workflow of 2 tasks, and no batch" in err
    assert sorted(place.results.rglob("*")) == before
    assert not (place.folder / "out.jsonl").exists()


TWO_TASKS = """
apiVersion: mloc/v1
kind: EchoTask
metadata: {name: two}
spec:
  stages:
    - {name: first, spec: {taskType: echo, data: {type: list, items: [a, b]}}}
    - {name: second, spec: {taskType: echo, data: {type: list, items: [c]}}}
"""


def test_a_request_one_of_whose_texts_fails_is_no_answer(place: Place) -> None:
    request = {
        "custom_id": "two",
        "method": "POST",
        "url": "/v1/completions",
        "body": {"prompt": ["What is 2 plus 2?", "a " * 2000], "max_tokens": 4},
    }
    done = place.run(
        place.write("in.jsonl", request), "-m", "tiny-chat", "-o", "out.jsonl",
        "--engine", "transformers", "--json",
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    report = json.loads(done.stdout)
    assert (report["ok"], report["batch"]["answered"], report["batch"]["failed"]) == (False, 0, 1)
    (line,) = place.lines("out.errors.jsonl")
    assert (line["error"], line["response"]["status_code"]) == (None, 400)


def test_vectors_of_a_batch(place: Place) -> None:
    source = place.write(
        "in.jsonl",
        {
            "custom_id": "two",
            "method": "POST",
            "url": "/v1/embeddings",
            "body": {"model": "text-embedding-3-small", "input": ["hot", "cold"], "dimensions": 8},
        },
    )
    done = place.run(
        source, "-m", "tiny-chat", "-o", "out.jsonl", "--engine", "transformers", "--json"
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["batch"]["answered"] == 1
    (line,) = place.lines("out.jsonl")
    data = line["response"]["body"]["data"]
    assert [(each["index"], len(each["embedding"])) for each in data] == [(0, 8), (1, 8)]


def test_what_is_wrong_with_the_command_or_the_file(place: Place) -> None:
    source = place.write("in.jsonl", chat("a", "x"), chat("a", "y"))
    done = place.run(source, "-m", "tiny-chat", "-o", "out.jsonl")
    assert done.returncode == 2
    assert "in.jsonl:2: custom_id 'a' was used in line 1" in done.stderr
    done = place.run(place.write("bad.jsonl", chat("a", "x", tools=[{}])), "-m", "tiny-chat",
                     "-o", "out.jsonl", "--engine", "transformers")  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert place.lines("out.jsonl") == []
    assert len(place.lines("out.errors.jsonl")) == 1
