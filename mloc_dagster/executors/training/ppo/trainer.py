"""The PPO trainer: what it is given becomes the parts of its loop."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Literal, cast

from mloc_dagster.errors import DataError, TerminalError
from mloc_dagster.executors.training.base import TrainingOutcome, TrainingRun
from mloc_dagster.executors.training.ppo.kl import kl_controller
from mloc_dagster.executors.training.ppo.loop import Parts, Scores, train_on
from mloc_dagster.executors.training.ppo.policy import Policy, Reference, begin_training
from mloc_dagster.executors.training.ppo.prompts import prompt_limit
from mloc_dagster.executors.training.ppo.rollouts import Sampler
from mloc_dagster.executors.training.ppo.state import Progress, Trained, load_checkpoint
from mloc_dagster.executors.training.ppo.update import Learner, make_optimizer
from mloc_dagster.schema import PpoOptions, PpoSpec, Training, ppo_options

ScorerOf = Callable[[PpoSpec, Any, Callable[[str], None]], Scores]
"""Builds what scores answers from the spec, the device, and where to log."""


class PpoTrainer:
    """Proximal policy optimisation (Schulman et al. 2017, arXiv:1707.06347) of a causal model.

    Rows have a `prompt`; their other columns go to the reward functions. A step is an update:
    `per_device_train_batch_size × gradient_accumulation_steps` answers are sampled and scored, and
    learned from in `num_ppo_epochs` passes of mini-batches. Hooks hear of every update, the history
    has an entry every `logging_steps`. With LoRA the reference is the model without its adapter.

    Supported is one process, in float32 or bfloat16.

    Args:
        scorer_of: Builds the scorer; by default from the spec's reward model and functions.
    """

    model_kind: Literal["causal_lm", "classifier"] = "causal_lm"

    def __init__(self, scorer_of: ScorerOf | None = None) -> None:
        self._scorer_of = scorer_of or _scorer_of_spec

    def train(self, run: TrainingRun) -> TrainingOutcome:
        """Trains `run.model` in place.

        Raises:
            DataError: If there are no rows.
            TaskCancelled: If the task was asked to stop.
            TerminalError: If an option, a score or the loss is unusable.
        """
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise TerminalError(
                f"PPO trains in one process, not in {os.environ['WORLD_SIZE']}: ask for one GPU"
            )
        if not run.rows:
            raise DataError("there are no prompts to train on")
        spec = cast("PpoSpec", run.spec)
        options = ppo_options(spec, len(run.rows))
        begin_training(run.model, gradient_checkpointing=spec.training.gradient_checkpointing)
        parts = self._parts(run, spec, options)
        progress = _begin(run, parts)
        parts.controller.coefficient = progress.kl_coef
        return train_on(parts, progress)

    def _parts(self, run: TrainingRun, spec: PpoSpec, options: PpoOptions) -> Parts:
        reference = Reference(run.model)
        policy = Policy(
            run.model,
            temperature=spec.generation.temperature,
            bf16=_computes_in_bf16(run, spec.training),
        )
        optimizer = make_optimizer(policy, options.learning_rate, spec.training.weight_decay)
        return Parts(
            run=run,
            options=options,
            trained=Trained(
                policy, run.tokenizer, optimizer, _schedule(optimizer, spec.training, options)
            ),
            reference=reference,
            controller=kl_controller(options),
            learner=Learner(
                policy=policy,
                optimizer=optimizer,
                options=options,
                max_grad_norm=spec.training.max_grad_norm,
                recompute=spec.training.gradient_checkpointing,
                cancelled=run.hooks.cancelled,
            ),
            sampler=Sampler(run.tokenizer, spec.generation, run.hooks.cancelled),
            scorer=self._scorer_of(spec, run.model.device, run.hooks.log),
            prompt_limit=prompt_limit(
                run.model, spec.generation.max_new_tokens, options.max_prompt_tokens
            ),
        )


def _begin(run: TrainingRun, parts: Parts) -> Progress:
    rows, seed = len(run.rows), run.spec.training.seed
    if run.resume_from is not None:
        progress = load_checkpoint(run.resume_from, parts.trained, rows, seed)
        run.hooks.log(f"goes on after update {progress.global_step}")
        return progress
    from transformers import set_seed

    set_seed(seed)  # for whatever draws besides sampling: a reward function, say
    return Progress(0, 0, parts.options.kl_coef, rows, seed)


def _computes_in_bf16(run: TrainingRun, training: Training) -> bool:
    """Tells whether to compute in bfloat16: as asked, or by default where the GPU can.

    float16 would want its gradients scaled; where a template asks for it, bfloat16 does the same.
    """
    import torch

    if run.model.device.type != "cuda":
        return False  # in float32, as loading has said
    if training.fp16 and torch.cuda.is_bf16_supported():
        run.hooks.log("training.fp16: PPO computes in bfloat16 instead, which is as fast")
        return True
    return training.bf16 if "bf16" in training.model_fields_set else torch.cuda.is_bf16_supported()


def _schedule(optimizer: Any, training: Training, options: PpoOptions) -> Any:
    from transformers import SchedulerType, get_scheduler

    name = training.lr_scheduler_type or "linear"
    try:
        return get_scheduler(name, optimizer, options.warmup, options.updates)
    except (TypeError, ValueError) as error:
        known = ", ".join(each.value for each in SchedulerType)
        raise TerminalError(
            f"training.lr_scheduler_type: {name!r} does not work here ({error}); known: {known}"
        ) from error


def _scorer_of_spec(spec: PpoSpec, device: Any, log: Callable[[str], None]) -> Scores:
    from mloc_dagster.executors.training.rewards import build_scorer

    return build_scorer(spec, device, log)
