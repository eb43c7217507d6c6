"""Options of trainings that no trainer has, and names that nobody registered, at their line."""

from __future__ import annotations

import subprocess
import sys

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
  data: {rows: [{%s}]}
"""

ROWS = {
    "dpo": "prompt: a, chosen: b, rejected: c",
    "reward": "chosen: b, rejected: c",
    "kto": "prompt: a, completion: b, label: true",
}


def findings(task_type: str, more: str, rows: str | None = None) -> list[str]:
    row = rows or ROWS.get(task_type, "prompt: a, completion: b")
    try:
        compile_document(parse_documents(HEAD % (task_type, row) + more, "t.yaml")[0])
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
        ("sft", "packin: true", "TRL's SFTConfig has no option 'packin'; did you mean 'packing'?"),
        ("sft", "beta: 0.1", "TRL's SFTConfig has no option 'beta'"),
        ("reward", "packing: true", "TRL's RewardConfig has no option 'packing'"),
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
    pairs = "  evaluation: {data: {rows: [{chosen: a, rejected: b}]}, %s}\n"
    (finding,) = findings("reward", pairs % "harness: {tasks: [arc_easy]}")
    assert "benchmarks are not for a reward model" in finding
    (finding,) = findings("sft", EVALUATION % "harness: {tasks: [arc_easy], num_few_shot: 2}")
    assert "did you mean 'num_fewshot'?" in finding


def test_a_reporter_that_nobody_knows_is_refused() -> None:
    assert findings("sft", "  training: {report_to: [wandb, tensorboard], run_name: a}\n") == []
    assert findings("sft", "  training: {report_to: all}\n") == []
    (finding,) = findings("sft", "  training: {report_to: [mlflo]}\n")
    assert "report_to: nothing is called 'mlflo'; did you mean 'mlflow'?" in finding
    (finding,) = findings("ppo", REWARDS + "  training: {report_to: wandb}\n")
    assert "has no option 'report_to'" in finding


REWARDS = "  rewards: [{name: contains, options: {text: x}}]\n"


@pytest.mark.parametrize(
    ("task_type", "option", "expected"),
    [
        ("sft", "lr_scheduler_type: cosin", "unknown value 'cosin'; did you mean 'cosine'?"),
        ("ppo", "lr_scheduler_type: cosin", "unknown value 'cosin'; did you mean 'cosine'?"),
        ("sft", "optim: adamw_torh", "unknown value 'adamw_torh'; did you mean 'adamw_torch'?"),
        ("ppo", "optim: lion_32bit", "PPO has 'adamw_torch' only, not 'lion_32bit'"),
        ("dpo", "loss_type: sigmoyd", "unknown value 'sigmoyd'; did you mean 'sigmoid'?"),
        ("dpo", "loss_type: banana", "unknown value 'banana'; known: 'aot'"),
        ("grpo", "loss_type: dappo", "unknown value 'dappo'; did you mean 'dapo'?"),
        ("kto", "loss_type: sigmoid", "unknown value 'sigmoid'; known: 'apo_zero_unpaired', 'kto'"),
        ("sft", "neftune_noise_alpha: much", 'expected a number, got "much"'),
        ("sft", "adam_beta2: '0.9'", 'expected a number, got "0.9"'),
        ("sft", "dataloader_num_workers: 1.5", "expected a whole number, got 1.5"),
        ("sft", "tf32: 1", "expected true or false, got 1"),
        ("ppo", "cliprange: wide", "expected a valid number, unable to parse string as a number"),
        ("sft", "max_steps: 0", "0 steps train nothing: give a number of steps, or -1 for epochs"),
        ("ppo", "mini_batch_size: 9", "mini_batch_size 9 is more than the 8 rollouts"),
        ("grpo", "num_generations: 3", "the 8 answers that are sampled together"),
        ("grpo", "num_generations: 1", "leaves no answer to compare with"),
        ("rloo", "generation_batch_size: 12", "no multiple of the 8 answers of a batch"),
        ("grpo", "per_device_train_batch_size: 4", "are no multiple of num_generations 8"),
    ],
)
def test_a_value_that_no_trainer_takes_is_an_error_at_its_line(
    task_type: str, option: str, expected: str
) -> None:
    online = task_type in ("ppo", "grpo", "rloo")
    more = f"  training:\n    {option}\n" + (REWARDS if online else "")
    (finding,) = findings(task_type, more)
    name = option.partition(":")[0]
    assert finding.startswith(f"t.yaml:9:{len(name) + 7}: spec.training.{name}: ")
    assert expected in finding


@pytest.mark.parametrize(
    ("task_type", "more", "path", "expected"),
    [
        ("sft", "training: {bf16: true, fp16: true}", "training.fp16", "cannot both be true"),
        ("ppo", "generation: {do_sample: false}", "generation.do_sample", "cannot be false"),
        ("grpo", "generation: {do_sample: false}", "generation.do_sample", "nothing to compare"),
        (
            "ppo",
            "training: {max_steps: 4, total_episodes: 9}",
            "training.total_episodes",
            "give max_steps (4) or total_episodes (9), not both",
        ),
        (
            "sft",
            "checkpoint: {load: {type: local}}",
            "checkpoint.load",
            "give one of path, url and task_id",
        ),
        (
            "sft",
            "model: {source: {type: builtin, identifier: tiny-chat}, "
            "adapters: [{path: a, apply: request}]}",
            "model.adapters[0].apply",
            "apply: request is for inference",
        ),
        (
            "sft",
            "model: {source: {type: builtin, identifier: tiny-chat}, "
            "transformers: {device_map: banana}}",
            "model.transformers.device_map",
            "'banana' is no place for weights; known: 'auto'",
        ),
        ("lora_sft", "lora: {use_dora: sure}", "lora.use_dora", "expected true or false"),
    ],
)
def test_what_cannot_be_had_together_is_an_error(
    task_type: str, more: str, path: str, expected: str
) -> None:
    text = HEAD % (task_type, ROWS.get(task_type, "prompt: a, completion: b"))
    if more.startswith("model"):
        text = "".join(line for line in text.splitlines(True) if not line.startswith("  model"))
    text += f"  {more}\n" + (REWARDS if task_type in ("ppo", "grpo") else "")
    with pytest.raises(TemplateError) as caught:
        compile_document(parse_documents(text, "t.yaml")[0])
    (finding,) = [str(each) for each in caught.value.diagnostics]
    assert f" spec.{path}: " in finding
    assert expected in finding


@pytest.mark.parametrize(
    ("reward", "expected"),
    [
        ("{name: contains}", "give text, or the column that has each row's own"),
        ("{name: contains, options: {column: answr}}", "there is no column 'answr'"),
        ("{name: contains, options: {txt: x}}", "unexpected keyword argument 'txt'"),
        ("{name: regex, options: {pattern: '('}}", "unterminated subpattern"),
        ("{name: length, options: {unit: letters}}", "unit is 'letters'"),
    ],
)
def test_options_of_reward_functions_are_tried(reward: str, expected: str) -> None:
    rows = "prompt: a, answer: b"
    (finding,) = findings("grpo", f"  rewards: [{reward}]\n", rows)
    assert f"the reward function {reward[7:].split(',')[0].rstrip('}')!r} says: " in finding
    assert expected in finding
    good = "  rewards: [{name: contains, options: {column: answer}}]\n"
    assert findings("grpo", good, rows) == []


@pytest.mark.parametrize(
    ("task_type", "rows", "expected"),
    [
        ("dpo", "prompt: a, completion: b", "data.rows has no column 'chosen'"),
        ("sft", "question: a, reply: b", "say which columns to learn from"),
        ("kto", "prompt: a, completion: b", "data.rows has no column 'label'"),
    ],
)
def test_rows_of_the_template_have_the_columns_of_the_method(
    task_type: str, rows: str, expected: str
) -> None:
    (finding,) = findings(task_type, "", rows)
    assert finding.startswith("t.yaml:7:16: spec.data.rows: ")
    assert expected in finding


def test_rows_to_measure_on_have_what_the_metrics_compare_with() -> None:
    more = "  evaluation: {data: {rows: [{prompt: a}]}, metrics: [exact_match]}\n"
    (finding,) = findings("sft", more)
    assert "exact_match compare with right answers" in finding


def test_checkpoints_of_weights_alone_are_warned_of() -> None:
    text = HEAD % ("sft", "text: a") + "  training: {save_only_model: true}\n"
    (warning,) = compile_document(parse_documents(text, "t.yaml")[0]).warnings
    assert "spec.training.save_only_model: warning: " in str(warning)
    assert "starts again from its first step" in str(warning)


def test_none_of_this_imports_a_library() -> None:
    code = (
        "import sys; from mloc_dagster.schema.task import DpoSpec; "
        "from mloc_dagster.schema.training.library_options import refused_value; "
        "print(refused_value(DpoSpec.method, 'loss_type', 'banana')); "
        "print(sorted({'torch', 'transformers', 'trl', 'peft'} & set(sys.modules)))"
    )
    said = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    assert said.splitlines()[1:] == ["[]"]
    assert "unknown value 'banana'" in said


CALCULATES = "  training: {tools: [{entry_point: calculator, effect: read}]}\n"


@pytest.mark.parametrize("task_type", ["sft", "dpo", "ppo", "rloo"])
def test_no_other_method_takes_tools(task_type: str) -> None:
    rewards = REWARDS if task_type in ("ppo", "rloo") else ""
    (finding,) = findings(task_type, CALCULATES + rewards)
    assert "spec.training.tools: 'tools' are for grpo" in finding


@pytest.mark.parametrize(
    ("training", "path", "expected"),
    [
        ("tools: [{entry_point: calculator}]", "training.tools[0]", "(entry_point) is write"),
        (
            "tools: [{python: {}}, {mcp: {url: 'http://a'}}]",
            "training.tools[1]",
            "write effect: read, or idempotent",
        ),
        (
            "tools: [{entry_point: calculate, effect: read}]",
            "training.tools[0].entry_point",
            "unknown tool 'calculate'; did you mean 'calculator'?",
        ),
        ("tools: [{python: {}}], fsdp: true", "training.tools", "need all of them for each turn"),
        ("tools: [{pyton: {}}]", "training.tools[0]", "did you mean 'python'?"),
        (
            "tools: [{python: {}}], max_tool_calling_iteration: 3",
            "training.max_tool_calling_iteration",
            "did you mean 'max_tool_calling_iterations'?",
        ),
    ],
)
def test_tools_that_a_training_cannot_have(training: str, path: str, expected: str) -> None:
    found = findings("grpo", f"  training: {{{training}}}\n" + REWARDS)
    assert any(f" spec.{path}" in each and expected in each for each in found), found


@pytest.mark.parametrize("form", ["format: plain", "separator: ': '"])
def test_tools_are_called_in_chats(form: str) -> None:
    text = (HEAD % ("grpo", "prompt: a")).replace("data: {", f"data: {{{form}, ")
    with pytest.raises(TemplateError, match=r"tools are called in chats"):
        compile_document(parse_documents(text + CALCULATES + REWARDS, "t.yaml")[0])


def test_a_reward_for_calls_needs_tools() -> None:
    reward = "  rewards: [{name: calls_tool, options: {tool: calculator}}]\n"
    (finding,) = findings("grpo", reward)
    assert "the task has no training.tools" in finding
    assert findings("grpo", reward + CALCULATES) == []
