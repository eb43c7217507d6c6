"""Fields that have no effect in a task: one table, and the warnings that come of it.

A field of the schema either changes what a task does, or stands in this table with the reason. The
tests walk every field of every task type and fail for one that does neither.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from itertools import permutations
from pathlib import PurePosixPath
from typing import Any

from mloc_dagster.compile.diagnostics import Diagnostic, Findings, at_key
from mloc_dagster.compile.tree import Path, Position, Tree
from mloc_dagster.schema import (
    ANSWERLESS_METRICS,
    Condition,
    DpoSpec,
    EngineType,
    Idle,
    InferenceSpec,
    KeyPath,
    KtoSpec,
    LoraSftSpec,
    ModelSpec,
    OnlineSpec,
    OpenaiBatchData,
    PpoSpec,
    RewardSpec,
    SftSpec,
    TaskSpec,
    TaskType,
    TrainedModel,
    TrainingSpec,
    certain_engine,
    engine_types,
    idle_options,
    task_types,
)

_Place = tuple[Position, Path]

_TRAININGS = (TrainingSpec,)
_MODELS = (ModelSpec,)
_INFERENCE = (InferenceSpec,)
_SPEAKING = (SftSpec, LoraSftSpec)
_COMPARING = (DpoSpec, RewardSpec)
_ONLINE = (OnlineSpec,)
_LABELLED = (KtoSpec,)
_EVERY = (TaskSpec,)

_ONE_SHARD = "a training is one shard"
_UNSHUFFLED = "the rows are not shuffled (shuffle: true)"
_INLINE = "the rows stand in the template; this chooses among rows of a dataset"


@cache
def _of_engines(engines: tuple[EngineType, ...]) -> tuple[Idle, ...]:
    """Returns the rules for the blocks of engines."""
    return tuple(_rules_of_engines(engines))


@cache
def _by_block(task_type: TaskType, engines: tuple[EngineType, ...]) -> Mapping[str, Sequence[Idle]]:
    """Returns the rules for a task of a type, by the block of the spec that they are about."""
    blocks: dict[str, list[Idle]] = {}
    for each in (*_SHARED, *_of_engines(engines), *task_type.idle):
        blocks.setdefault(each.path[0], []).append(each)
    return blocks


def _rules_of_engines(engines: tuple[EngineType, ...]) -> Iterator[Idle]:
    for each in engines:
        if each.name not in TrainedModel.model_fields:
            why = f"a training runs on its trainer, not on {each.label}"
            yield Idle(f"model.{each.name}", why, _TRAININGS)
    for each, running in permutations(engines, 2):
        why = f"this task runs on {running.label}"
        yield Idle(f"model.{each.name}.*", why, _MODELS, _unread(each, running))


def _unread(block: EngineType, running: EngineType) -> Condition:
    def when(spec: Any, name: str) -> bool:
        known = certain_engine(spec)
        return known is running and (block.name, name) in idle_options(spec.model, running)

    return when


def _no_gpus(spec: Any, name: str) -> bool:
    gpu = spec.resources.hardware.gpu
    return gpu.count == 0 and getattr(gpu, name) != "any"


def _greedy(spec: Any, name: str) -> bool:
    # A row of a batch file may have a temperature of its own.
    return spec.inference.greedy and not isinstance(spec.data, OpenaiBatchData)


def _sampled_afresh(spec: Any, name: str) -> bool:
    block = spec.inference
    return spec.reuse and not block.deterministic and not isinstance(spec.data, OpenaiBatchData)


def _counted_otherwise(spec: Any, name: str) -> bool:
    episodes = isinstance(spec, PpoSpec) and "total_episodes" in (spec.training.model_extra or {})
    return spec.training.max_steps > 0 or episodes


def _rows(
    field: str,
    why: str,
    holds: Callable[[Any], bool],
    specs: tuple[type[TaskSpec], ...] = _TRAININGS,
) -> tuple[Idle, Idle]:
    """Returns a rule for a task's rows, and the same for those that a training is measured on."""
    return (
        Idle(f"data.{field}", why, specs, lambda spec, _: holds(spec.data)),
        Idle(
            f"evaluation.data.{field}",
            why,
            _TRAININGS,
            lambda spec, _: holds(spec.evaluation.data),
        ),
    )


_SHARED: tuple[Idle, ...] = (
    # Models.
    Idle(
        "model.engine", "a training runs on its trainer, not on an engine for inference", _TRAININGS
    ),
    *(
        Idle(
            f"model.transformers.{name}",
            "training.per_device_train_batch_size says how many rows a step has",
            _TRAININGS,
        )
        for name in ("max_batch_size", "max_batch_tokens")
    ),
    Idle(
        "model.transformers.response_template",
        "a training's answers are scored as they are written",
        _TRAININGS,
        lambda spec, _: not (spec.method.calls_tools and spec.training.tools),
    ),
    Idle(
        "model.source.trust_remote_code",
        "a model that ships with mloc brings no code",
        (ModelSpec, TrainingSpec),
        lambda spec, _: spec.model.source.type == "builtin",
    ),
    # Machines.
    *(
        Idle(
            f"resources.hardware.gpu.{name}",
            "it describes GPUs, and gpu.count asks for none",
            _EVERY,
            _no_gpus,
        )
        for name in ("type", "memory")
    ),
    Idle(
        "resources.hardware.gpu",
        "enforce_cpu keeps the task off GPUs",
        _EVERY,
        lambda spec, _: spec.enforce_cpu and spec.resources.hardware.gpu.count > 0,
    ),
    Idle("resources.cost_per_token", "a training is paid for by the hour", _TRAININGS),
    Idle("parallel.enabled", _ONE_SHARD, _TRAININGS, lambda spec, _: spec.parallel.enabled),
    Idle("parallel.max_shards", _ONE_SHARD, _TRAININGS),
    Idle("parallel.strategy", _ONE_SHARD, _TRAININGS),
    Idle(
        "parallel.max_shards",
        "parallel.enabled: false makes one shard",
        _EVERY,
        lambda spec, _: not spec.parallel.enabled,
    ),
    *(
        Idle(f"retries.{name}", "retries.max is 0", _EVERY, lambda spec, _: spec.retries.max == 0)
        for name in ("delay_s", "max_delay_s")
    ),
    # Rows.
    *_rows("seed", _UNSHUFFLED, lambda data: not data.shuffle, _EVERY),
    Idle("data.buffer_size", _UNSHUFFLED, _EVERY, lambda spec, _: not spec.data.shuffle),
    Idle(
        "data.template.options",
        "it stands around the columns of a template with a name; an inline text says all itself",
        _EVERY,
        lambda spec, _: spec.data.template.text is not None,
    ),
    *(
        rule
        for name in ("split", "revision", "config_name")
        for rule in _rows(name, _INLINE, lambda data: data.dataset_name is None)
    ),
    *_rows(
        "separator",
        "format: chat writes rows with the model's chat template",
        lambda data: data.format == "chat",
    ),
    # Columns: an evaluation may measure another kind of rows than it trains on.
    *(
        Idle(f"data.{name}", "fine-tuning learns from right answers only", _SPEAKING)
        for name in ("chosen_column", "rejected_column", "label_column")
    ),
    *(
        Idle(
            f"data.{name}",
            "comparisons are a prompt with a chosen and a rejected answer",
            _COMPARING,
        )
        for name in (
            "response_column",
            "text_column",
            "messages_column",
            "tools_column",
            "label_column",
        )
    ),
    *(
        Idle(
            f"data.{name}", "rows are a prompt, an answer and its label, or a comparison", _LABELLED
        )
        for name in ("text_column", "messages_column", "tools_column")
    ),
    *(
        Idle(f"data.{name}", "the model answers by itself: only prompts are read", _ONLINE)
        for name in (
            "response_column",
            "text_column",
            "messages_column",
            "tools_column",
            "chosen_column",
            "rejected_column",
            "label_column",
        )
    ),
    Idle(
        "output.destination.path",
        "it is the results root, where the task's own folder lies already",
        _EVERY,
        lambda spec, _: PurePosixPath(spec.output.destination.path) == PurePosixPath("."),
    ),
    # Sampling.
    *(
        Idle(f"inference.{name}", "answers are greedy: nothing is sampled", _INFERENCE, _greedy)
        for name in ("top_p", "top_k", "min_p", "seed")
    ),
    Idle(
        "inference.temperature",
        "do_sample: false is greedy",
        _INFERENCE,
        lambda spec, name: _greedy(spec, name) and spec.inference.temperature > 0,
    ),
    Idle(
        "reuse",
        "answers are sampled anew each time; set inference.seed or temperature: 0",
        _INFERENCE,
        _sampled_afresh,
    ),
    # Trainings.
    Idle("checks", "a training has no rows of answers; its check is evaluation.gate", _TRAININGS),
    Idle("output.formats", "a training leaves responses.json and its weights", _TRAININGS),
    Idle(
        "lora.task_type",
        "it follows from the task type: SEQ_CLS for reward, CAUSAL_LM for the others",
        _TRAININGS,
        lambda spec, _: (spec.lora.task_type == "SEQ_CLS") != spec.method.classifies,
    ),
    Idle(
        "training.num_train_epochs",
        "max_steps, or PPO's total_episodes, counts instead",
        _TRAININGS,
        _counted_otherwise,
    ),
    Idle(
        "training.save_steps",
        "save_strategy is not steps",
        _TRAININGS,
        lambda spec, _: spec.training.save_strategy != "steps",
    ),
    Idle(
        "training.save_total_limit",
        "save_strategy: no keeps no checkpoint",
        _TRAININGS,
        lambda spec, _: spec.training.save_strategy == "no",
    ),
    Idle(
        "evaluation.pattern",
        "no metric looks for it (metrics: [regex])",
        _TRAININGS,
        lambda spec, _: "regex" not in spec.evaluation.metrics,
    ),
    Idle(
        "evaluation.max_new_tokens",
        "no metric has the model answer",
        _TRAININGS,
        lambda spec, _: ANSWERLESS_METRICS.issuperset(spec.evaluation.metrics),
    ),
    Idle(
        "reward_model.label",
        "type: sentiment takes the positive class less the negative",
        _ONLINE,
        lambda spec, _: spec.reward_model.type == "sentiment",
    ),
    Idle(
        "checkpoint.load.file",
        "it names a file of an earlier task (task_id)",
        _TRAININGS,
        lambda spec, _: spec.checkpoint.load.task_id is None,
    ),
)
"""Every field of the blocks that task types share which may be written where it has no effect."""


def idle_fields() -> tuple[Idle, ...]:
    """Returns every rule: those of the shared blocks, and what task types say of their own."""
    own = (rule for each in task_types().values() for rule in each.idle)
    return (*_SHARED, *_of_engines(tuple(engine_types().values())), *own)


class Effects:
    """Tells which values of a document none of its tasks reads.

    A value may stand in the template's own spec and hold for several tasks: it has an effect if it
    has one in any of them.
    """

    def __init__(self) -> None:
        self._idle: dict[_Place, Diagnostic] = {}
        self._read: set[_Place] = set()

    def add(self, task_type: TaskType, spec: Tree, typed: TaskSpec) -> None:
        """Takes in a task.

        Args:
            task_type: Its type.
            spec: Its spec as it was written, merged with its base.
            typed: The same, typed.
        """
        rules = _by_block(task_type, tuple(engine_types().values()))
        # Few of the rules are about a block that this document has.
        found = [
            (rule, path, tree)
            for block in spec.fields
            for rule in rules.get(block, ())
            for path, tree in _found(spec, rule.path)
        ]
        idle: dict[KeyPath, Idle] = {}
        for rule, path, _ in found:
            if rule.holds(typed, path[-1]):
                idle.setdefault(path, rule)
        for _, path, tree in found:
            if any(path[:end] in idle for end in range(1, len(path))):
                continue  # the whole block is idle
            if path in idle:
                message = f"{'.'.join(path)} has no effect: {idle[path].why}"
                self.idle(tree, at_key(tree, message, "warning"))
            else:
                self.read(tree)

    def idle(self, tree: Tree, warning: Diagnostic) -> None:
        """Takes in that a task does not read a value, and what to say if no other does."""
        self._idle.setdefault(_place(tree), warning)

    def read(self, tree: Tree) -> None:
        """Takes in that a task reads a value."""
        self._read.add(_place(tree))

    def warn(self, findings: Findings) -> None:
        """Adds a warning for each value that no task reads."""
        findings.add(*(each for place, each in self._idle.items() if place not in self._read))


def _place(tree: Tree) -> _Place:
    return tree.key, tree.path


def _found(tree: Tree, path: KeyPath) -> Iterator[tuple[KeyPath, Tree]]:
    """Yields what stands at a path, each with the path to it; `*` is every key."""
    if not path:
        yield (), tree
        return
    first, rest = path[0], path[1:]
    children = tree.fields
    for name in children if first == "*" else (first,):
        if name in children:
            for below, found in _found(children[name], rest):
                yield (name, *below), found
