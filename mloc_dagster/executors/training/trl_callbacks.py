"""What a transformers `Trainer` tells while it trains, passed on to the task's hooks."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mloc_dagster.executors.training.base import TrainingRun


class RunReporter:
    """The events of a `transformers.TrainerCallback` that a task listens to.

    Attributes:
        stopped: The task was asked to stop, and the trainer told to end after its step.
    """

    def __init__(self, run: TrainingRun) -> None:
        self.stopped = False
        self._run = run
        self._every = run.spec.evaluation.every if run.spec.evaluation else None
        self._counted = (time.monotonic(), 0.0)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Starts the clock of the tokens per second."""
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
