"""Options of trainings that no trainer has, and names that nobody registered, at their line."""

from __future__ import annotations

import pytest
import yaml

from mloc_dagster.compile.compiler import compile_document
from mloc_dagster.compile.loader import parse_documents
from mloc_dagster.errors import TemplateError

pytest.importorskip("trl")

HEAD = """\
apiVersion: mloc/v1
kind: TrainingTask
metadata: {name: t}
spec:
  taskType: %s
  model: {source: {type: builtin, identifier: tiny-chat}}
  data: {rows: [{prompt: a, completion: b}]}
"""


def findings(task_type: str, more: str) -> list[str]:
    try:
        compile_document(parse_documents(HEAD % task_type + more, "t.yaml")[0])
    except TemplateError as error:
        return [str(each) for each in error.diagnostics]
    return []


@pytest.mark.parametrize(
    ("task_type", "options"),
    [
        ("sft", "{packing: true, assistant_only_loss: true, adam_beta2: 0.95, num_processes: 2}"),
        ("dpo", "{beta: 0.3, loss_type: sigmoid, precompute_ref_log_probs: true}"),
        ("kto", "{beta: 0.1, desirable_weight: 1.5}"),
        ("reward", "{center_rewards_coefficient: 0.01}"),
    ],
)
def test_the_librarys_own_options_are_taken(task_type: str, options: str) -> None:
    assert findings(task_type, f"  training: {options}\n") == []


@pytest.mark.parametrize(
    ("task_type", "option", "expected"),
    [
        ("sft", "packin: true", "sft (SFTConfig) has no option 'packin'; did you mean 'packing'?"),
        ("sft", "beta: 0.1", "sft (SFTConfig) has no option 'beta'"),
        ("reward", "packing: true", "reward (RewardConfig) has no option 'packing'"),
        ("sft", "output_dir: /tmp", "the task's folder is chosen by mloc"),
        ("sft", "eval_steps: 5", "described in the block `evaluation`"),
    ],
)
def test_an_option_that_would_be_ignored_is_an_error(
    task_type: str, option: str, expected: str
) -> None:
    (finding,) = findings(task_type, f"  training:\n    {option}\n")
    assert finding.startswith(f"t.yaml:9:5: spec.training.{option.partition(':')[0]}: ")
    assert expected in finding


def test_pefts_own_options_are_taken_and_checked() -> None:
    assert findings("lora_sft", "  lora: {r: 4, use_dora: true}\n") == []
    (finding,) = findings("lora_sft", "  lora: {r: 4, use_dorra: true}\n")
    assert "LoraConfig has no option 'use_dorra'; did you mean 'use_dora'?" in finding


def test_ppo_takes_its_own_options() -> None:
    rewards = "  rewards: [{name: contains, options: {text: x}}]\n"
    assert findings("ppo", rewards + "  training: {cliprange: 0.1, kl_coef: 0.02}\n") == []
    (finding,) = findings("ppo", rewards + "  training: {clip_range: 0.1}\n")
    assert "did you mean 'cliprange'?" in finding


def test_rewards_are_asked_for_and_known() -> None:
    (finding,) = findings("grpo", "")
    assert "give reward_model, rewards or both" in finding
    (finding,) = findings("grpo", "  rewards: [{name: contain}]\n")
    assert "unknown reward function 'contain'; did you mean 'contains'?" in finding


def evaluation(**changes: object) -> str:
    block = {"data": {"rows": [{"prompt": "a", "completion": "b"}]}, "metrics": ["exact_match"]}
    return yaml.safe_dump({"evaluation": block | changes}).replace("\n", "\n  ").join(["  ", "\n"])


def test_metrics_and_gates_are_checked() -> None:
    assert findings("sft", evaluation(gate="exact_match >= before + 0.05")) == []
    (finding,) = findings("sft", evaluation(metrics=["exact_mach"]))
    assert "unknown metric 'exact_mach'; did you mean 'exact_match'?" in finding
    (finding,) = findings("sft", evaluation(gate="exact_match => 1"))
    assert "spec.evaluation.gate" in finding
    (finding,) = findings("sft", evaluation(gate="contains >= 1"))
    assert "the gate's metric 'contains' is not measured" in finding
    (finding,) = findings("sft", evaluation(metrics=["regex"]))
    assert "needs a pattern" in finding


def test_sft_trains_no_adapter() -> None:
    (finding,) = findings("sft", "  lora: {r: 4}\n")
    assert "lora_sft" in finding


EVALUATION = "  evaluation: {data: {rows: [{prompt: a, completion: b}]}, %s}\n"


def test_a_gate_may_name_figures_of_benchmarks_where_there_are_any() -> None:
    gate = "gate: 'arc_easy/acc >= before'"
    assert findings("sft", EVALUATION % f"harness: {{tasks: [arc_easy]}}, {gate}") == []
    (finding,) = findings("sft", EVALUATION % gate)
    assert "the gate's metric 'arc_easy/acc' is not measured" in finding


def test_benchmarks_need_a_model_that_writes_and_the_librarys_names() -> None:
    (finding,) = findings("reward", EVALUATION % "harness: {tasks: [arc_easy]}")
    assert "benchmarks are not for a reward model" in finding
    (finding,) = findings("sft", EVALUATION % "harness: {tasks: [arc_easy], num_few_shot: 2}")
    assert "did you mean 'num_fewshot'?" in finding


def test_a_reporter_that_nobody_knows_is_refused() -> None:
    assert findings("sft", "  training: {report_to: [wandb, tensorboard], run_name: a}\n") == []
    assert findings("sft", "  training: {report_to: all}\n") == []
    (finding,) = findings("sft", "  training: {report_to: [mlflo]}\n")
    assert "report_to: nothing is called 'mlflo'; did you mean 'mlflow'?" in finding
    (finding,) = findings("ppo", "  rewards: [{name: contains}]\n  training: {report_to: wandb}\n")
    assert "has no option 'report_to'" in finding
