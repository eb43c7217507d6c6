"""What `mloc show` says of a training."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from mloc_dagster.cli.wording import duration

if TYPE_CHECKING:
    from mloc_dagster.wire import TrainingView

_SHOWN = {
    "loss": "loss {:.4g}",
    "objective/score": "score {:.4g}",
    "objective/kl": "KL {:.4g}",
    "reward": "reward {:.4g}",
    "rewards/accuracies": "accuracy {:.4g}",
    "learning_rate": "learning rate {:.3g}",
    "tokens_per_s": "{:,.0f} tokens/s",
}
"""What is said of the figures that were logged last, where the trainer logs them."""


def training_lines(training: TrainingView) -> Iterator[tuple[str, str]]:
    """Yields the names and texts of the lines."""
    yield "steps", _steps(training)
    figures = [
        text.format(training.metrics[name])
        for name, text in _SHOWN.items()
        if name in training.metrics
    ]
    if training.steps_per_s is not None:
        figures.append(f"{training.steps_per_s:.3g} steps/s")
    if figures:
        yield "training", ", ".join(figures)
    if training.checkpoint is not None and training.seconds is None:
        yield "saved", f"checkpoint of step {training.checkpoint:,}"
    if training.gate:
        yield "gate", training.gate


def _steps(training: TrainingView) -> str:
    text = f"{training.step:,}"
    if training.steps is not None:
        text += f" of {training.steps:,}"
    if training.seconds is not None:
        return f"{text} in {duration(training.seconds)}"
    if training.eta_s is not None:
        text += f", about {duration(training.eta_s)} left"
    return text
