"""Trainings over several processes (FSDP, DeepSpeed's stage 3), and callbacks of their trainer.

None of the processes holds the whole model. What needs it is done by all of them at the same time:
each measures the same rows, and hands its part of the weights to the first, which saves them.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from mloc_dagster.errors import TerminalError
from mloc_dagster.executors.training.arguments import has_gpu
from mloc_dagster.executors.training.base import TrainingRun
from mloc_dagster.schema import TrainingSpec, refused_spreading, spreads_weights


class AllStepsDone(Exception):
    """The checkpoint that a trainer goes on from is the one of its last step."""


class RunReporter:
    """The events of a `transformers.TrainerCallback` that a task listens to.

    Attributes:
        stopped: The task was asked to stop, and the trainer told to end after its step.
        tell_others: Takes figures that are not the trainer's own, for its other callbacks.
    """

    def __init__(self, run: TrainingRun) -> None:
        self.stopped = False
        self.tell_others: Callable[[Mapping[str, float]], None] | None = None
        self._run = run
        self._every = run.spec.evaluation.every if run.spec.evaluation else None
        self._counted = (time.monotonic(), 0.0)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Starts the clock of the tokens per second.

        Raises:
            AllStepsDone: If no step is left. transformers 5.19 looks at `max_steps` only after a
                step, so it would do one more wherever that is not the last step of an epoch.
        """
        if state.global_step >= state.max_steps:
            raise AllStepsDone
        counted = [each["num_tokens"] for each in state.log_history if "num_tokens" in each]
        self._counted = (time.monotonic(), counted[-1] if counted else 0.0)

    def on_log(
        self, args: Any, state: Any, control: Any, *, logs: Mapping[str, Any], **kwargs: Any
    ) -> None:
        """Reports what was logged."""
        if state.is_world_process_zero:
            metrics = numbers(logs) | self._token_rate(logs)
            self._run.hooks.progress(state.global_step, state.max_steps, metrics)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Reports the step, stops when asked to, and measures the model when it is time."""
        if state.is_world_process_zero:
            self._run.hooks.progress(state.global_step, state.max_steps, {})
        if self._asked_to_stop(args):
            self.stopped = True
            control.should_training_stop = True
        elif state.is_world_process_zero and self._is_time(state):
            self._measure(state)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Reports a checkpoint that all processes have written their part of."""
        from accelerate import PartialState

        PartialState().wait_for_everyone()
        if state.is_world_process_zero:
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            self._run.hooks.checkpoint(folder, state.global_step)

    def _asked_to_stop(self, args: Any) -> bool:
        asked = self._run.hooks.cancelled()
        if args.world_size > 1:  # all stop at the same step, or the others wait for ever
            from accelerate.utils import broadcast_object_list

            asked = broadcast_object_list([asked])[0]
        return asked

    def _is_time(self, state: Any) -> bool:
        # The last step is left out: the trained model is measured anyway.
        every = self._every
        last = state.global_step >= state.max_steps
        return every is not None and not last and state.global_step % every == 0

    def _measure(self, state: Any) -> None:
        if self._run.evaluate is None:
            return
        model = self._run.model
        training = model.training
        try:
            measured = self._run.evaluate()
        finally:
            model.train(training)
        metrics = {f"eval_{name.removeprefix('eval_')}": value for name, value in measured.items()}
        # The history stands in each checkpoint, so a resumed run keeps these figures.
        state.log_history.append({**metrics, "step": state.global_step})
        self._run.hooks.progress(state.global_step, state.max_steps, metrics)
        if state.is_world_process_zero and self.tell_others is not None:
            self.tell_others(metrics)

    def _token_rate(self, logs: Mapping[str, Any]) -> dict[str, float]:
        tokens, (since, before), now = logs.get("num_tokens"), self._counted, time.monotonic()
        if not isinstance(tokens, int | float) or tokens <= before or now <= since:
            return {}
        self._counted = (now, tokens)
        return {"tokens_per_s": (tokens - before) / (now - since)}


def reporter(run: TrainingRun) -> Any:
    """Returns a `RunReporter` that is a `transformers.TrainerCallback` as well."""
    from transformers import TrainerCallback

    return type("TrainerReporter", (RunReporter, TrainerCallback), {})(run)


def numbers(logged: Mapping[str, Any]) -> dict[str, float]:
    """Returns the entries that are numbers."""
    return {
        name: value
        for name, value in logged.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }


@dataclass(slots=True)
class Gathering:
    """How a training's weights are gathered; the trainer says it, who alone knows.

    Attributes:
        gather: Called by all processes: returns the weights in main memory to the first, and
            nothing to the others. None while no trainer has said.
    """

    gather: Callable[[], dict[str, Any]] | None = None


@dataclass(frozen=True, slots=True)
class SpreadRun(TrainingRun):
    """A run in which no process has all of the weights while it trains.

    Attributes:
        begin: Called by all processes once the weights are where they are trained.
        weights: Takes the way to gather them.
    """

    begin: Callable[[], None] | None = None
    weights: Gathering = field(default_factory=Gathering)


def is_spread(spec: TrainingSpec) -> bool:
    """Tells whether a training spreads its weights over its processes on this machine.

    Raises:
        TerminalError: If it is asked to in a way that cannot be had.
    """
    refused = refused_spreading(spec.training)
    if refused is not None:
        raise TerminalError(f"training.{refused[0]}: {refused[1]}")
    # Without a GPU the options are left aside, and other trainers than TRL's know nothing of them.
    return spec.method.config is not None and spreads_weights(spec.training) and has_gpu(spec)


def prepare_environment(config: Any) -> None:
    """Sets what `accelerate launch` would, before the processes meet.

    Weights that rest in main memory are exchanged there as well: with FSDP's `cpu_offload`
    accelerate opens a second channel, if these two variables say so.

    Args:
        config: The option `fsdp_config`.
    """
    if isinstance(config, dict) and config.get("cpu_offload", config.get("fsdp_cpu_offload")):
        os.environ["ACCELERATE_USE_FSDP"] = "true"
        os.environ["FSDP_OFFLOAD_PARAMS"] = "true"


def reporter_of(trainer: Any, run: TrainingRun) -> Any:
    """Returns the callback that reports a run; where weights are spread, all measure with it.

    Args:
        trainer: A `transformers.Trainer`, not yet training.
        run: What it trains; a `SpreadRun` learns how weights are gathered.

    Raises:
        TerminalError: If the trainer spreads weights and the template says nothing of it.
    """
    if isinstance(run, SpreadRun):
        run.weights.gather = lambda: whole_weights(trainer)
        from transformers import TrainerCallback

        return type("TrainerReporter", (SpreadReporter, TrainerCallback), {})(run)
    if _with_fsdp(trainer) or _with_zero3(trainer):
        raise TerminalError(
            "the worker's environment spreads the weights (ACCELERATE_USE_FSDP or "
            "ACCELERATE_USE_DEEPSPEED): say it in the template, with training.fsdp or "
            "training.deepspeed"
        )
    return reporter(run)


class SpreadReporter(RunReporter):
    """Measures in each process, since each has a part of the model; only the first is heard."""

    def __init__(self, run: SpreadRun) -> None:
        super().__init__(run)
        self._spread = run

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measures the model before its first step, where it is spread already."""
        model = self._spread.model
        unwrapped = model.get_base_model() if hasattr(model, "get_base_model") else model
        # Generating, transformers then keeps all at it until the last has ended its answers;
        # it marks so the models that it spreads itself, not those that accelerate does.
        setattr(unwrapped, "_is_fsdp_managed_module", True)  # noqa: B010
        if self._spread.begin is not None:
            self._spread.begin()
        super().on_train_begin(args, state, control, **kwargs)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measures along with the first process, at the same steps."""
        super().on_step_end(args, state, control, **kwargs)
        if not state.is_world_process_zero and not self.stopped and self._is_time(state):
            self._measure(state)


def whole_weights(trainer: Any) -> dict[str, Any]:
    """Returns the weights of a model that was trained in parts; of an adapter, its own alone.

    All processes have to call it.

    Args:
        trainer: The `transformers.Trainer` that trained it.

    Returns:
        In the first process the weights by name, in main memory; elsewhere nothing.
    """
    model = trainer.accelerator.unwrap_model(trainer.model)
    adapted = hasattr(model, "peft_config")
    if _with_zero3(trainer):
        return _of_zero3(model, first=trainer.args.process_index == 0, trained_only=adapted)
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=adapted)
    return dict(get_model_state_dict(model, options=options))


def _with_fsdp(trainer: Any) -> bool:
    return bool(trainer.is_fsdp_enabled)


def _with_zero3(trainer: Any) -> bool:
    return bool(trainer.is_deepspeed_enabled) and (
        trainer.accelerator.state.deepspeed_plugin.zero_stage == 3
    )


def _of_zero3(model: Any, *, first: bool, trained_only: bool) -> dict[str, Any]:
    """Gathers one weight after the other: at no time has a GPU more than one of them whole."""
    gathered: Any = import_module("deepspeed").zero.GatheredParameters
    found: dict[str, Any] = {}
    for name, weight in model.named_parameters():
        if trained_only and not weight.requires_grad:
            continue
        with gathered([weight]):
            if first:
                found[name] = weight.detach().to("cpu", copy=True)
    if first:
        kept = model.state_dict().keys()
        found |= {name: each.cpu() for name, each in model.named_buffers() if name in kept}
    return found
