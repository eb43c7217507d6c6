"""Benchmarks of lm-evaluation-harness: real ones, on the builtin model, over a local file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("lm_eval", reason="the extra eval is in no lock")

from mloc_dagster.errors import TerminalError
from mloc_dagster.executors.training import harness as harnessing
from mloc_dagster.executors.training.evaluation import evaluate
from mloc_dagster.models import builtin_model_path
from mloc_dagster.schema import Evaluation

pytestmark = [
    # Of other people's code, which this project cannot mend.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]

TINY = str(builtin_model_path("tiny-chat"))
ROWS = [{"prompt": "What is the capital of Peru?", "completion": "Lima!"}]
QUESTIONS = [
    {"question": "a a a a", "choices": ["a a", "q z x 7"], "answer": 0},
    {"question": "b b b b", "choices": ["q z x 7", "b b"], "answer": 1},
    {"question": "c c c c", "choices": ["q z x 7", "c c"], "answer": 0},
]
CHOOSING = """\
task: letters-again
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""
WRITING = """\
task: letters_written
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{choices[answer]}}}}"
generation_kwargs: {{until: ["\\n"], max_gen_toks: 4}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
filter_list: [{{name: strict-match, filter: [{{function: take_first}}]}}]
"""


@pytest.fixture
def tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    rows = tmp_path / "questions.jsonl"
    rows.write_text("\n".join(map(json.dumps, QUESTIONS)))
    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / "choosing.yaml").write_text(CHOOSING.format(file=rows))
    (folder / "writing.yaml").write_text(WRITING.format(file=rows))
    return folder


@pytest.fixture(scope="module")
def model() -> Any:
    torch.set_num_threads(1)
    return transformers.AutoModelForCausalLM.from_pretrained(TINY)


def measured(
    model: Any, names: list[str], tasks: Path, log: list[str] | None = None, **more: Any
) -> dict[str, float]:
    gate = more.pop("gate", None)
    evaluation = Evaluation.model_validate(
        {
            "data": {"rows": ROWS},
            "harness": {"tasks": names, "include_path": str(tasks), **more},
            "gate": gate,
        }
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(TINY)
    lines = [] if log is None else log
    return evaluate(model, tokenizer, ROWS, evaluation, log=lines.append)


def test_figures_of_benchmarks_stand_beside_the_other_metrics(model: Any, tasks: Path) -> None:
    found = measured(model, ["letters-again", "letters_written"], tasks)
    assert list(found) == [
        "loss",
        "letters-again/acc",
        "letters_written/exact_match/strict-match",
    ]
    assert found["letters-again/acc"] in (0.0, pytest.approx(1 / 3), pytest.approx(2 / 3), 1.0)
    one = measured(model, ["letters-*"], tasks, limit=1)
    assert one["letters-again/acc"] in (0.0, 1.0)


def test_a_benchmark_leaves_no_trace_in_the_training(model: Any, tasks: Path) -> None:
    model.train()
    torch.manual_seed(7)
    undisturbed = torch.rand(3)
    torch.manual_seed(7)
    measured(model, ["letters-again"], tasks)
    assert model.training
    assert torch.equal(torch.rand(3), undisturbed)


def test_a_long_benchmark_says_that_it_is_at_work(
    model: Any, tasks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(harnessing, "TOLD_EVERY_S", 0.0)
    lines: list[str] = []
    measured(model, ["letters-again"], tasks, lines, batch_size=2)
    assert lines[0] == "evaluation.harness: 1 batches done"
    assert len(lines) >= 2


def test_names_that_nobody_knows_are_told(model: Any, tasks: Path) -> None:
    with pytest.raises(TerminalError, match="no task 'letters-agian'; did you mean 'letters-again"):
        measured(model, ["letters-agian"], tasks)
    with pytest.raises(TerminalError, match=r"include_path: '.*nowhere' is no folder"):
        measured(model, ["letters-again"], tasks / "nowhere")
    with pytest.raises(TerminalError, match="asks for 'letters-again/ac', which was not measured"):
        measured(model, ["letters-again"], tasks, gate="letters-again/ac > 0")
    assert measured(model, ["letters-again"], tasks, gate="letters-again/acc >= before - 0.1")
