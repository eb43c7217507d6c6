"""Where a training's figures go: TensorBoard's files, other services, and what is not installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("trl")
transformers = pytest.importorskip("transformers")

from mloc_dagster.errors import MissingExtraError, TerminalError
from mloc_dagster.executors.training import harness, harness as harness_module, trl_run
from mloc_dagster.executors.training.base import Hooks, TrainingRun
from mloc_dagster.executors.training.harness import check_packages
from mloc_dagster.executors.training.trainers import SftTrainer
from mloc_dagster.models import builtin_model_path
from mloc_dagster.schema import REPORTERS, SftSpec

TINY = builtin_model_path("tiny-chat")


def make_spec(**blocks: Any) -> SftSpec:
    return SftSpec.model_validate(
        {
            "taskType": "sft",
            "model": {"source": {"type": "builtin", "identifier": "tiny-chat"}},
            "data": {"rows": [{"prompt": "a", "completion": "b"}]},
            "enforce_cpu": True,
            **blocks,
        }
    )


def trained(folder: Path, lines: list[str], **training: Any) -> Any:
    quick = {"max_steps": 3, "logging_steps": 1, "save_strategy": "no"}
    output = folder / "checkpoints"
    output.mkdir()
    run = TrainingRun(
        spec=make_spec(training={**quick, **training}),
        model=transformers.AutoModelForCausalLM.from_pretrained(TINY),
        tokenizer=transformers.AutoTokenizer.from_pretrained(TINY),
        rows=[{"text": "The sky is blue."}] * 4,
        output_dir=output,
        resume_from=None,
        hooks=Hooks(
            progress=lambda *_: None,
            log=lines.append,
            cancelled=lambda: False,
            checkpoint=lambda *_: None,
        ),
    )
    return SftTrainer().train(run)


@pytest.mark.parametrize("report_to", ["none", "tensorboard"])
def test_a_training_leaves_its_loss_curve_for_tensorboard(tmp_path: Path, report_to: str) -> None:
    accumulating = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    outcome = trained(tmp_path, [], report_to=report_to)
    (file,) = (tmp_path / "logs" / "tensorboard").iterdir()
    events = accumulating.EventAccumulator(str(file))
    events.Reload()
    curve = [(each.step, each.value) for each in events.Scalars("train/loss")]
    logged = [(each["step"], each["loss"]) for each in outcome.history]
    assert [step for step, _ in curve] == [1, 2, 3]
    assert curve == [(step, pytest.approx(loss)) for step, loss in logged]
    assert not list((tmp_path / "checkpoints").rglob("events.*"))


def test_without_tensorboard_the_log_says_where_the_figures_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = trl_run.importlib.util.find_spec
    monkeypatch.setattr(
        trl_run.importlib.util,
        "find_spec",
        lambda name, *more: None if name == "tensorboard" else found(name, *more),
    )
    lines: list[str] = []
    trained(tmp_path, lines)
    assert any("TensorBoard is not installed" in line for line in lines)
    assert not (tmp_path / "logs").exists()


def test_a_package_that_is_missing_is_told_before_anything_is_loaded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(harness_module.importlib.util, "find_spec", lambda name: None)
    check_packages(make_spec(training={"report_to": "none"}))
    with pytest.raises(TerminalError, match="report_to: comet_ml needs the package comet_ml"):
        check_packages(make_spec(training={"report_to": ["comet_ml"]}))
    with pytest.raises(MissingExtraError, match=r"report_to: wandb needs the extra 'tracking'"):
        check_packages(make_spec(training={"report_to": "wandb"}))
    with pytest.raises(TerminalError, match="called 'wandbb'; did you mean 'wandb'"):
        check_packages(make_spec(training={"report_to": "wandbb"}))
    rows = {"rows": [{"prompt": "a", "completion": "b"}]}
    measuring = {"data": rows, "harness": {"tasks": ["arc_easy"]}}
    monkeypatch.setattr(harness.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"evaluation\.harness needs the extra 'eval'"):
        check_packages(make_spec(evaluation=measuring))


def test_the_names_are_those_of_the_installed_transformers() -> None:
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    # kubeflow reports by itself where it runs, and needs no package.
    assert set(REPORTERS) == set(INTEGRATION_TO_CALLBACK) - {"kubeflow"}
