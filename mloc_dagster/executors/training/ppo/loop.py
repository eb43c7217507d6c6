"""The loop of updates, and what surrounds each: figures, measuring, checkpoints."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from mloc_dagster.errors import TaskCancelled
from mloc_dagster.executors.training.base import Row, TrainingOutcome, TrainingRun
from mloc_dagster.executors.training.checkpoints import prune
from mloc_dagster.executors.training.ppo.experience import Experience, checked_scores, judge
from mloc_dagster.executors.training.ppo.kl import KlController
from mloc_dagster.executors.training.ppo.policy import Reference
from mloc_dagster.executors.training.ppo.prompts import PromptOrder, encode_prompts
from mloc_dagster.executors.training.ppo.rollouts import Sampler
from mloc_dagster.executors.training.ppo.state import Progress, Trained, save_checkpoint
from mloc_dagster.executors.training.ppo.update import Learner
from mloc_dagster.schema import PpoOptions

# Sampling and mini-batches draw from generators of their own, seeded for each update, so that what
# an update does depends on its number and not on what was drawn before it.
_SEEDS_APART = 1_000_003


class Scores(Protocol):
    """What scores answers; `rewards.Scorer` is one."""

    def score(
        self,
        prompts: Sequence[Any],
        completions: Sequence[str],
        columns: Mapping[str, Sequence[Any]],
    ) -> Sequence[float]:
        """Returns a score for each completion."""
        ...


@dataclass(frozen=True, slots=True)
class Parts:
    """What the loop is made of.

    Attributes:
        run: The training, as it was asked for.
        options: Its options, worked out.
        trained: Policy, optimiser and schedule.
        reference: What the policy is not to leave too far.
        controller: What leaving costs.
        learner: Takes the optimiser steps.
        sampler: Samples answers.
        scorer: Scores them.
        prompt_limit: Tokens per prompt at most.
    """

    run: TrainingRun
    options: PpoOptions
    trained: Trained
    reference: Reference
    controller: KlController
    learner: Learner
    sampler: Sampler
    scorer: Scores
    prompt_limit: int | None


def train_on(parts: Parts, progress: Progress) -> TrainingOutcome:
    """Does the updates that are left.

    Args:
        parts: What to train with.
        progress: How far it is; moves along.

    Raises:
        TaskCancelled: If the task was asked to stop.
        TerminalError: If the scores or the loss are unusable.
    """
    run, total = parts.run, parts.options.updates
    order = PromptOrder(len(run.rows), run.spec.training.seed)
    figures: dict[str, float] = {}
    began = time.monotonic()
    while progress.global_step < total:
        if run.hooks.cancelled():
            raise TaskCancelled(f"stopped after update {progress.global_step} of {total}")
        before = progress.episode // len(run.rows)
        figures = _update(parts, progress, order)
        step = progress.global_step
        if step % run.spec.training.logging_steps == 0 or step == total:
            progress.log_history.append({**figures, "step": step})
            run.hooks.log(_line(step, total, figures))
        run.hooks.progress(step, total, figures)
        _measure(parts, progress)
        if _is_time_to_save(parts, progress, new_epoch=progress.episode // len(run.rows) > before):
            _save(parts, progress)
    return TrainingOutcome(
        steps=progress.global_step,
        metrics={**_last(progress), "train_runtime": time.monotonic() - began},
        history=list(progress.log_history),
        dataset_size=len(run.rows),
    )


def _update(parts: Parts, progress: Progress, order: PromptOrder) -> dict[str, float]:
    """Samples, scores and learns once; returns figures."""
    options, trained = parts.options, parts.trained
    taken = order.take(progress.episode, options.rollouts)
    rows = [parts.run.rows[place] for place in taken]
    seed = parts.run.spec.training.seed + _SEEDS_APART * (progress.global_step + 1)
    experience = _experience(parts, rows, seed)
    learned = parts.learner.learn(experience, seed)
    learning_rate = trained.scheduler.get_last_lr()[0]
    trained.scheduler.step()
    parts.controller.update(experience.figures["objective/kl"], len(rows))
    progress.global_step += 1
    progress.episode += len(rows)
    progress.kl_coef = parts.controller.coefficient
    return {
        **experience.figures,
        **learned,
        "learning_rate": learning_rate,
        "episode": float(progress.episode),
        "epoch": progress.episode / len(parts.run.rows),
    }


def _experience(parts: Parts, rows: Sequence[Row], seed: int) -> Experience:
    model, sampler = parts.trained.policy.model, parts.sampler
    prompts = encode_prompts(parts.trained.tokenizer, rows, parts.prompt_limit)
    with parts.trained.policy.autocast():
        rollouts = sampler.sample(model, prompts, chunk=parts.options.chunk, seed=seed)
    answers = sampler.texts(rollouts)
    names = dict.fromkeys(name for row in rows for name in row if name != "prompt")
    columns = {name: [row.get(name) for row in rows] for name in names}
    scores = parts.scorer.score([row["prompt"] for row in rows], answers, columns)
    return judge(
        rollouts,
        checked_scores(scores, answers),
        parts.trained.policy,
        parts.reference,
        parts.controller.coefficient,
        parts.options,
    )


def _measure(parts: Parts, progress: Progress) -> None:
    """Measures the model when it is time; after the last update its owner does so anyway."""
    run, step = parts.run, progress.global_step
    every = run.spec.evaluation.every if run.spec.evaluation else None
    if run.evaluate is None or every is None or step % every or step == parts.options.updates:
        return
    measured = run.evaluate()
    parts.trained.policy.model.eval()
    figures = {f"eval_{name.removeprefix('eval_')}": value for name, value in measured.items()}
    progress.log_history.append({**figures, "step": step})
    run.hooks.progress(step, parts.options.updates, figures)


def _is_time_to_save(parts: Parts, progress: Progress, *, new_epoch: bool) -> bool:
    training = parts.run.spec.training
    if training.save_strategy == "no":
        return False
    if progress.global_step == parts.options.updates:
        return True
    if training.save_strategy == "epoch":
        return new_epoch
    return progress.global_step % training.save_steps == 0


def _save(parts: Parts, progress: Progress) -> None:
    run = parts.run
    place = save_checkpoint(run.output_dir, parts.trained, progress)
    run.hooks.checkpoint(place, progress.global_step)
    prune(run.output_dir, run.spec.training.save_total_limit)


def _last(progress: Progress) -> dict[str, float]:
    """Returns the closing figures: those of the last update."""
    logged = [each for each in progress.log_history if "objective/score" in each]
    return {name: value for name, value in logged[-1].items() if name != "step"} if logged else {}


def _line(step: int, total: int, figures: Mapping[str, float]) -> str:
    shown = ("objective/score", "objective/kl", "loss/policy", "loss/value", "policy/entropy")
    told = ", ".join(f"{name} {figures[name]:.4g}" for name in shown)
    return f"update {step} of {total}: {told}"
