"""Does the installed trainer know the options of a training, and can what it asks for be had?"""

from __future__ import annotations

from mloc_dagster.compile.diagnostics import Findings, at_key, at_value
from mloc_dagster.compile.spelling import find
from mloc_dagster.compile.tree import Tree
from mloc_dagster.errors import nearest_hint
from mloc_dagster.plugins import entry_points
from mloc_dagster.schema.gate import GateError, parse_gate
from mloc_dagster.schema.metrics import BUILTIN_METRICS
from mloc_dagster.schema.reporters import REPORTERS, reporters
from mloc_dagster.schema.task import OnlineSpec, TaskSpec, TrainingSpec
from mloc_dagster.schema.trainer_arguments import lora_argument_names, refused_argument

METRICS_GROUP = "mloc_dagster.metrics"
REWARDS_GROUP = "mloc_dagster.reward_functions"


def check_training(spec: Tree, typed: TaskSpec, findings: Findings) -> None:
    """Adds what the trainer of a task does not know, or nobody registered.

    Args:
        spec: The task's spec as it was written, merged with its base.
        typed: The same, typed.
        findings: Takes the errors.
    """
    if not isinstance(typed, TrainingSpec):
        return
    options = find(spec, ("training",))
    for name, value in options.fields.items() if options is not None else ():
        reason = refused_argument(typed.task_type, name)
        if reason is not None:
            findings.add(at_key(value, reason))
    _check_reporters(spec, typed, findings)
    _check_lora(spec, findings)
    _check_evaluation(spec, typed, findings)
    if isinstance(typed, OnlineSpec):
        _check_rewards(spec, findings)


def _check_reporters(spec: Tree, typed: TrainingSpec, findings: Findings) -> None:
    given = find(spec, ("training", "report_to"))
    for name in reporters(typed.training) if given is not None else ():
        if name not in REPORTERS:
            hint = nearest_hint(name, REPORTERS)
            findings.add(at_value(given or spec, f"report_to: nothing is called {name!r}{hint}"))


def _check_lora(spec: Tree, findings: Findings) -> None:
    block, known = find(spec, ("lora",)), lora_argument_names()
    if block is None or not known:
        return
    for name, value in block.fields.items():
        if name not in known:
            hint = nearest_hint(name, known)
            findings.add(at_key(value, f"PEFT's LoraConfig has no option {name!r}{hint}"))


def _check_evaluation(spec: Tree, typed: TrainingSpec, findings: Findings) -> None:
    metrics = find(spec, ("evaluation", "metrics"))
    known = BUILTIN_METRICS | entry_points(group=METRICS_GROUP).names
    for each in metrics.items if metrics is not None else ():
        if each.text not in known:
            hint = nearest_hint(str(each.content), known)
            findings.add(at_value(each, f"unknown metric {str(each.content)!r}{hint}"))
    harness = find(spec, ("evaluation", "harness"))
    if harness is not None and typed.task_type == "reward":
        findings.add(at_key(harness, "benchmarks are not for a reward model, which writes no text"))
    gate = find(spec, ("evaluation", "gate"))
    if gate is None or typed.evaluation is None or typed.evaluation.gate is None:
        return
    try:
        asked = parse_gate(typed.evaluation.gate).metrics
    except GateError as error:
        findings.add(at_value(gate, str(error)))
        return
    for name in sorted(each for each in asked if not typed.evaluation.may_measure(each)):
        hint = nearest_hint(name, typed.evaluation.metrics)
        findings.add(at_value(gate, f"the gate's metric {name!r} is not measured{hint}"))


def _check_rewards(spec: Tree, findings: Findings) -> None:
    rewards, known = find(spec, ("rewards",)), entry_points(group=REWARDS_GROUP).names
    for each in rewards.items if rewards is not None else ():
        name = each.fields.get("name")
        if name is not None and name.text not in known:
            hint = nearest_hint(str(name.content), known)
            findings.add(at_value(name, f"unknown reward function {str(name.content)!r}{hint}"))
