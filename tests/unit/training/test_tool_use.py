"""Trainings in which the model calls tools: what is called, scored, measured, kept and closed."""

from __future__ import annotations

import importlib
import stat
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("trl")
pytest.importorskip("pydantic_ai")
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import msgspec

from mloc_dagster.errors import DataError, TerminalError
from mloc_dagster.executors.training import rewards, session, tool_use
from mloc_dagster.executors.training.child import hooks_for
from mloc_dagster.executors.training.messages import (
    Evaluated,
    Finished,
    LogLine,
    Message,
    Saved,
    TrainingJob,
)
from mloc_dagster.executors.training.tool_use import answer_of, calls_of, let_it_call
from mloc_dagster.models import builtin_model_path
from mloc_dagster.schema import TrainingSpec, find_task_type
from mloc_dagster.tools import FailedCall
from tests.unit.executors.test_registry import plug_ins

__all__ = ["plug_ins"]

MODULE = '''
calls = []

def calculator(expression: str) -> str:
    """Calculates.

    Args:
        expression: What to calculate.
    """
    calls.append(expression)
    if len(calls) % 4 == 0:
        raise OverflowError("tired")
    return "84"

scored = []

def score(prompts, completions, columns):
    scored.append((list(completions), columns))
    return [float(len(each) % 7) for each in completions]

def broken(prompts, completions, columns):
    raise RuntimeError("no idea")
'''

ENTRIES = """\
[mloc_dagster.tools]
counted.calculator = counted_tools:calculator
[mloc_dagster.reward_functions]
counted = counted_tools:score
broken = counted_tools:broken
"""

QUESTIONS = [f"What is {number} * 7?" for number in range(12, 20)]


@pytest.fixture
def counted(plug_ins: Path) -> Iterator[Any]:
    """A distribution whose tool counts its calls."""
    (plug_ins / "counted_tools.py").write_text(MODULE)
    info = plug_ins / "counted-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: counted\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(ENTRIES)
    yield importlib.import_module("counted_tools")
    sys.modules.pop("counted_tools")


def spec_of(training: dict[str, Any] | None = None, **blocks: Any) -> TrainingSpec:
    given = {
        "taskType": "grpo",
        "model": {"source": {"type": "builtin", "identifier": "tiny-tools"}},
        "data": {"prompts": QUESTIONS},
        "rewards": [{"name": "counted"}],
        "enforce_cpu": True,
        "generation": {"max_new_tokens": 96, "temperature": 1.0},
        "training": {
            "tools": [{"entry_point": "counted.calculator", "effect": "read"}],
            "max_steps": 3,
            "save_steps": 2,
            "logging_steps": 1,
            "per_device_train_batch_size": 8,
            "num_generations": 4,
            "max_tool_calling_iterations": 2,
            "learning_rate": 1e-5,
            **(training or {}),
        },
        **blocks,
    }
    spec = find_task_type("grpo").spec.model_validate(given)
    assert isinstance(spec, TrainingSpec)
    return spec


class Attempt:
    """An attempt at a training in this process, and what it said."""

    def __init__(self, folder: Path, spec: TrainingSpec, resume_from: Path | None = None) -> None:
        self.said: list[Message] = []
        (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        job = TrainingJob(
            task_id="t",
            spec=spec,
            folder=folder,
            rows=_written(folder / "rows.jsonl", [{"prompt": each} for each in QUESTIONS]),
            eval_rows=_written(
                folder / "eval.jsonl",
                [{"prompt": each, "completion": "The answer is 84."} for each in QUESTIONS],
            ),
            resume_from=resume_from,
        )
        torch.set_num_threads(1)
        self.finished: Finished = session.train(
            job, hooks_for(job, self.said.append, lambda: False), self.said.append
        )

    def of[T: Message](self, kind: type[T]) -> list[T]:
        return [each for each in self.said if isinstance(each, kind)]

    def series(self, name: str) -> list[float]:
        return [entry[name] for entry in self.finished.history if name in entry]


def _written(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_bytes(b"".join(msgspec.json.encode(row) + b"\n" for row in rows))
    return path


def open_threads() -> list[str]:
    return [each.name for each in threading.enumerate() if each.name == "mloc tools"]


def test_the_model_calls_its_tools_and_rewards_hear_of_it(counted: Any, tmp_path: Path) -> None:
    attempt = Attempt(tmp_path, spec_of())
    assert attempt.finished.steps == 3
    assert counted.calls
    heard = [calls for _, columns in counted.scored for calls in columns["tool_calls"]]
    assert len(heard) == 24  # answers
    made = [call for calls in heard for call in calls if call["result"] is not None]
    assert len(made) == len(counted.calls)
    assert [each["arguments"]["expression"] for each in made] == counted.calls
    assert {each["name"] for each in made} == {"calculator"}
    failed = [each for each in made if each["failed"]]
    assert len(failed) == len(counted.calls) // 4
    assert all(each["result"] == "Error: OverflowError: tired" for each in failed)
    # Scored is what is said in the end: what the calls said was read, and stands in no answer.
    answers = [each for completions, _ in counted.scored for each in completions]
    assert "The answer is 84." in answers
    assert not any("tool_call" in each for each in answers)
    # Of three steps of eight answers each.
    assert sum(attempt.series("tools/call_frequency")) * 8 == pytest.approx(len(made), abs=0.01)
    assert max(attempt.series("tools/failure_frequency")) > 0
    assert LogLine("tools: calculator") in attempt.said
    assert open_threads() == []


def test_a_training_goes_on_from_its_checkpoint_with_tools(counted: Any, tmp_path: Path) -> None:
    first = Attempt(tmp_path, spec_of())
    saved = next(each for each in first.of(Saved) if each.step == 2)
    before = len(counted.calls)
    again = Attempt(tmp_path / "again", spec_of(), resume_from=Path(saved.path))
    assert again.finished.steps == 3
    assert again.series("step") == [1, 2, 3]
    assert len(counted.calls) > before  # the third step's calls are made again


def test_a_model_is_measured_with_its_tools(counted: Any, tmp_path: Path) -> None:
    evaluation = {
        "data": {"prompts": QUESTIONS},
        "metrics": ["exact_match"],
        "max_new_tokens": 48,
    }
    attempt = Attempt(tmp_path, spec_of({"max_steps": 1}, evaluation=evaluation))
    before, after = attempt.of(Evaluated)
    # Every fourth call fails, and the model says so.
    assert 0.5 <= before.metrics["exact_match"] <= 0.75
    assert 0.5 <= after.metrics["exact_match"] <= 0.75


def test_tools_are_closed_when_a_training_fails(counted: Any, tmp_path: Path) -> None:
    with pytest.raises(TerminalError, match="the reward function 'broken' failed"):
        Attempt(tmp_path, spec_of(rewards=[{"name": "broken"}]))
    assert open_threads() == []


def test_a_column_of_the_rows_does_not_hide_the_calls(counted: Any, tmp_path: Path) -> None:
    from mloc_dagster.executors.training.base import Hooks, TrainingRun
    from mloc_dagster.executors.training.trainers import online_trainer

    run = TrainingRun(
        spec=spec_of(),
        model=None,
        tokenizer=None,
        rows=[{"prompt": "a", "tool_calls": "mine"}],
        output_dir=tmp_path,
        resume_from=None,
        hooks=Hooks(
            progress=lambda *_: None,
            log=lambda _: None,
            cancelled=lambda: False,
            checkpoint=lambda *_: None,
        ),
        tools=(lambda expression: expression,),
    )
    with pytest.raises(DataError, match="the column 'tool_calls' is where rewards find"):
        online_trainer(run)


# What a tokenizer needs


@pytest.fixture
def tokenizer() -> Any:
    return transformers.AutoTokenizer.from_pretrained(builtin_model_path("tiny-tools"))


def test_the_template_may_say_how_calls_are_read(tokenizer: Any) -> None:
    model = {
        "source": {"type": "builtin", "identifier": "tiny-tools"},
        "transformers": {"response_template": "qwen3"},
    }
    lines: list[str] = []
    own = tokenizer.response_template
    let_it_call(tokenizer, spec_of(model=model), lines.append)
    assert lines == ["model.transformers.response_template: qwen3"]
    assert tokenizer.response_template != own


def test_a_model_that_cannot_call_is_told(tokenizer: Any) -> None:
    plain = "{% for m in messages %}{{ m.role + ': ' + m.content }}{% endfor %}"
    tokenizer.response_template = None
    tokenizer.chat_template = plain
    with pytest.raises(TerminalError, match="has no place for calls of tools"):
        let_it_call(tokenizer, spec_of(), lambda _: None)
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role + ': ' + m.content }}"
        "{% for c in m.tool_calls or [] %}{{ c | tojson }}{% endfor %}{% endfor %}"
    )
    with pytest.raises(TerminalError, match="nothing tells how the model writes calls"):
        let_it_call(tokenizer, spec_of(), lambda _: None)


# Calls and answers


def call(name: str, **arguments: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


def result(text: str) -> dict[str, Any]:
    return {"role": "tool", "name": "f", "content": text}


def test_calls_are_told_with_their_results() -> None:
    completion = [
        {"role": "assistant", "content": "Wait.", "tool_calls": [call("f", a=1), call("g")]},
        result("one"),
        result("Error: no"),
        {"role": "assistant", "content": "", "tool_calls": [call("f", a=2)]},
        result("two"),
        {"role": "assistant", "content": "More?", "tool_calls": [call("f", a=3)]},
    ]
    told = [(each["name"], each["result"], each["failed"]) for each in calls_of(completion)]
    assert told == [
        ("f", "one", False),
        ("g", "Error: no", True),
        ("f", "two", False),
        ("f", None, False),
    ]
    assert answer_of(completion) == "More?"
    assert answer_of(completion[:3]) == ""
    assert answer_of([{"role": "assistant", "content": "Hello."}]) == "Hello."
    assert calls_of([{"role": "assistant", "content": "Hello."}]) == []


def test_calls_are_paid_for() -> None:
    def calls(*told: tuple[str, str | None, bool]) -> list[dict[str, Any]]:
        return [{"name": n, "arguments": {}, "result": r, "failed": f} for n, r, f in told]

    columns = {
        "tool_calls": [
            calls(),
            calls(("f", "1", False)),
            calls(("f", "Error: x", True)),
            calls(("f", "Error: x", True), ("g", "2", False)),
            calls(("f", None, False)),
        ]
    }
    answers = [""] * 5
    assert rewards.calls_tool([], answers, columns) == [0, 1, 0, 1, 0]
    assert rewards.calls_tool([], answers, columns, tool="f") == [0, 1, 0, 0, 0]
    with pytest.raises(ValueError, match=r"no training\.tools"):
        rewards.calls_tool([], answers, {})


def test_an_answer_that_is_measured_has_so_many_turns(tokenizer: Any) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(builtin_model_path("tiny-tools"))
    said: list[str] = []

    def calculator(expression: str) -> str:
        """Calculates.

        Args:
            expression: What to calculate.
        """
        said.append(expression)
        return FailedCall("Error: tired")

    def answers(turns: int) -> list[str]:
        return tool_use.greedy_tool_answers(
            model, tokenizer, ["What is 12 * 7?"], 48, [calculator], most_turns=turns
        )

    assert answers(2) == ["I could not find out."]
    assert said == ["12*7"]
    assert answers(0) == [""]  # it may not call, and says nothing else
    assert said == ["12*7"]


# What goes to the process that trains


def test_the_job_has_the_secrets_of_its_tools(tmp_path: Path) -> None:
    headers = {"Authorization": "Bearer planted-secret"}
    tools = [
        {"mcp": {"url": "https://a.org/mcp", "headers": headers}, "effect": "read"},
        {"mcp": {"command": ["server", "-x"], "env": {"KEY": "${MY_KEY}"}}, "effect": "read"},
        {"python": {}},
    ]
    spec = spec_of({"tools": tools}, output={"destination": DESTINATION})
    job = TrainingJob(task_id="t", spec=spec, folder=tmp_path, rows=tmp_path / "rows")
    path = job.write()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    read = TrainingJob.model_validate_json(path.read_bytes())
    assert read.spec.training.tools == spec.training.tools
    server = read.spec.training.tools[0].mcp
    assert server is not None
    assert server.headers["Authorization"].get_secret_value() == "Bearer planted-secret"
    assert "other-secret" not in path.read_text()  # which is not the process's business
    assert "planted-secret" not in job.model_dump_json()


DESTINATION = {"type": "http", "url": "https://a.org", "headers": {"X": "other-secret"}}
