"""Does the installed trainer know the options of a training, and can what it asks for be had?"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial

from mloc_dagster.compile.checks import nearest
from mloc_dagster.compile.diagnostics import Findings, at_key, at_value, find
from mloc_dagster.compile.tree import Path, Tree
from mloc_dagster.errors import DataError, TerminalError, nearest_hint
from mloc_dagster.plugins import (
    REWARDS_GROUP,
    entry_points,
    registered_function,
    unfit_options,
)
from mloc_dagster.schema import (
    REPORTERS,
    WEIGHTS_ONLY,
    Columns,
    Layout,
    OnlineSpec,
    RewardFunction,
    TaskSpec,
    TrainingData,
    TrainingSpec,
    columns_of,
    evaluation_layout,
    inline_records,
    lora_argument_names,
    refused_argument,
    refused_in_training,
    refused_lora_value,
    refused_value,
    reporters,
    weights_only,
)

_OURS = "mloc_dagster."


def check_training(spec: Tree, typed: TaskSpec, findings: Findings) -> None:
    """Adds what the trainer of a task does not know, or nobody registered.

    Args:
        spec: The task's spec as it was written, merged with its base.
        typed: The same, typed.
        findings: Takes the errors.
    """
    if not isinstance(typed, TrainingSpec):
        return
    _check_options(spec, typed, findings)
    _check_reporters(spec, typed, findings)
    _check_lora(spec, findings)
    _check_columns(spec, typed, findings)
    if isinstance(typed, OnlineSpec):
        _check_rewards(spec, typed, findings)


def _check_options(spec: Tree, typed: TrainingSpec, findings: Findings) -> None:
    options = find(spec, ("training",))
    for name, value in options.fields.items() if options is not None else ():
        reason = refused_argument(typed.method, name)
        if reason is not None:
            findings.add(at_key(value, reason))
            continue
        reason = refused_value(typed.method, name, value.plain())
        if reason is not None:
            findings.add(at_value(value, reason))
    for each in refused_in_training(typed):
        findings.add(at_value(nearest(spec, each.path), each.reason))
    if weights_only(typed):
        place = nearest(spec, ("training", "save_only_model"))
        findings.add(at_value(place, WEIGHTS_ONLY, "warning"))


def _check_columns(spec: Tree, typed: TrainingSpec, findings: Findings) -> None:
    """Adds what rows that are written into the template lack."""
    sources: list[tuple[Path, TrainingData, Callable[[Columns], Layout]]] = [
        (("data",), typed.data, typed.method.layout)
    ]
    measured = typed.evaluation
    if measured is not None:
        layout = partial(evaluation_layout, method=typed.method, metrics=measured.metrics)
        sources.append((("evaluation", "data"), measured.data, layout))
    for path, data, choose in sources:
        if data.dataset_name is not None or data.node is not None:
            continue
        field, records = inline_records(data)
        where = ".".join(map(str, (*path, field)))
        try:
            choose(columns_of(records, where, data))
        except DataError as error:
            findings.add(at_value(nearest(spec, (*path, field)), str(error)))


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
        elif (reason := refused_lora_value(name, value.plain())) is not None:
            findings.add(at_value(value, reason))


def _check_rewards(spec: Tree, typed: OnlineSpec, findings: Findings) -> None:
    rewards, known = find(spec, ("rewards",)), entry_points(group=REWARDS_GROUP)
    for each in rewards.items if rewards is not None else ():
        name = each.fields.get("name")
        if name is not None and name.text not in known.names:
            hint = nearest_hint(str(name.content), known.names)
            findings.add(at_value(name, f"unknown reward function {str(name.content)!r}{hint}"))
    for number, reward in enumerate(typed.rewards):
        if reward.name not in known.names:
            continue
        try:
            reason = _refused_reward(reward, typed)
        except TerminalError as error:
            findings.add(at_value(nearest(spec, ("rewards", number, "name")), str(error)))
            continue
        if reason is not None:
            place = nearest(spec, ("rewards", number, "options"))
            findings.add(at_value(place, f"the reward function {reward.name!r} says: {reason}"))


def _refused_reward(reward: RewardFunction, spec: OnlineSpec) -> str | None:
    """Returns what a function says of its options when there are no answers yet to score."""
    function = registered_function(REWARDS_GROUP, "reward function", reward.name)
    reason = unfit_options(function, 3, reward.options)
    # Ours take no answers as well as many; nobody else has promised that.
    if reason is not None or not function.__module__.startswith(_OURS):
        return reason
    columns: Mapping[str, list[object]] = _AnyColumn()
    if spec.data.dataset_name is None and spec.data.node is None:
        _, records = inline_records(spec.data)
        columns = {name: [] for record in records for name in record if name != "prompt"}
        if spec.training.tools:
            columns["tool_calls"] = []
    try:
        function([], [], columns, **reward.options)
    except (TypeError, ValueError, AttributeError, re.error) as error:
        return str(error)
    return None


class _AnyColumn(Mapping[str, list[object]]):
    """The columns of a dataset that nobody has opened yet."""

    def __getitem__(self, name: str) -> list[object]:
        return []

    def __contains__(self, name: object) -> bool:
        return True

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0
