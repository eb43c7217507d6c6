"""The figures next to a task's bar."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mloc_dagster.cli.task_progress import TaskProgress
from mloc_dagster.cli.wording import count, duration, rate, short_rate


def task_figures(task: TaskProgress, width: int | None = None) -> str:
    """Returns what stands next to a task's bar: speeds, hits, shards, errors, time left, SLO.

    Args:
        task: The task.
        width: Characters there are; None is enough for everything.
    """
    figures = [
        *_training_figures(task),
        *_speed_figures(task),
        *_saving_figures(task),
        *_shard_figures(task),
        *_outlook(task),
    ]
    return fit(figures, width)


_SHOWN_OF_A_TRAINING = {
    "loss": "loss",
    "objective/score": "score",
    "objective/kl": "KL",
    "reward": "reward",
    "rewards/accuracies": "accuracy",
    "learning_rate": "lr",
    "tokens_per_s": "tokens/s",
}
"""What stands next to a training's bar, where its trainer logs it, and how it is called there."""


def _training_figures(task: TaskProgress) -> list[Figure]:
    training = task.training
    if training is None or task.finishing or task.succeeded:
        return []
    figures: list[Figure] = []
    if training.steps_per_s:
        speed = f"{training.steps_per_s:.3g}"
        figures.append(Figure(8, (f"{speed} steps/s", f"{speed}/s")))
    for importance, (name, called) in enumerate(_SHOWN_OF_A_TRAINING.items()):
        if name in training.metrics:
            value = f"{training.metrics[name]:.3g}"
            figures.append(Figure(7 - min(importance, 6), (f"{called} {value}",)))
    return figures


def _speed_figures(task: TaskProgress) -> list[Figure]:
    if not task.rows_computed or task.finishing or task.succeeded:
        return []
    speeds = task.speeds()
    if not speeds.rows:
        return []
    read, written = speeds.prompt_tokens, speeds.tokens
    return [
        Figure(8, (f"{rate(speeds.rows)} rows/s", f"{rate(speeds.rows)}/s")),
        Figure(
            6,
            (
                f"{rate(read)} prompt + {rate(written)} output tokens/s",
                f"{short_rate(read)} in + {short_rate(written)} out tok/s",
                f"{short_rate(read)}+{short_rate(written)} tok/s",
            ),
        ),
    ]


def _saving_figures(task: TaskProgress) -> list[Figure]:
    figures: list[Figure] = []
    if task.cached_tokens:
        hits = f"{task.cached_tokens / task.prompt_tokens:.0%}"
        figures.append(Figure(4, (f"{hits} cache hits", f"{hits} hits")))
    if task.reused:
        figures.append(
            Figure(3, (f"{count(task.reused, 'row')} reused", f"{task.reused:,} reused"))
        )
    return figures


def _shard_figures(task: TaskProgress) -> list[Figure]:
    figures: list[Figure] = []
    if task.total_shards:
        done = f"{task.shards_done}/{task.total_shards}"
        figures.append(Figure(1, (f"{done} shards", f"{done} sh")))
    if task.errors:
        figures.append(Figure(5, (count(task.errors, "error"), f"{task.errors:,} err")))
    if task.failed_attempts:
        failed = count(task.failed_attempts, "failed attempt")
        figures.append(Figure(2, (failed, f"{task.failed_attempts} failed")))
    return figures


def _outlook(task: TaskProgress) -> list[Figure]:
    if task.succeeded:
        return [Figure(9, ("done",))]
    if task.finishing:
        return [Figure(9, ("writing results",)), *_promise(task, 0.0)]
    remaining = task.remaining_s()
    if remaining is None:
        return _promise(task, None)
    return [Figure(9, (f"{duration(remaining)} left",)), *_promise(task, remaining)]


def _promise(task: TaskProgress, remaining_s: float | None) -> list[Figure]:
    late_s = task.late_s(remaining_s)
    if late_s is None:
        return []
    name = f"SLO {task.slo_s:g} s"
    if late_s <= 0:
        return [Figure(7, (f"{name}: on time", "SLO ok"))]
    by = f"{late_s:.0f} s" if late_s < 60 else duration(late_s)
    return [Figure(7, (f"{name}: at risk, about {by} late", f"SLO at risk: +{by}", f"SLO +{by}"))]


SEPARATOR = " · "
NARROW_SEPARATOR = "  "


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure in one or more wordings.

    Attributes:
        importance: What is more important is shortened and left out later.
        wordings: From the most explicit to the shortest.
    """

    importance: int
    wordings: tuple[str, ...]


def fit(figures: Sequence[Figure], width: int | None) -> str:
    """Returns the figures in their order, on a line of at most `width` characters.

    All are shortened, and moved together, before one is left out. The most important one stays.

    Args:
        figures: What there is to say.
        width: Characters there are; None is enough for everything.
    """
    shown = dict.fromkeys(range(len(figures)), 0)
    if width is None:
        return _line(figures, shown)
    by_importance = sorted(shown, key=lambda place: figures[place].importance)
    longest = max((len(each.wordings) for each in figures), default=0)
    for shorter in range(1, longest):
        for place in by_importance:
            if len(_line(figures, shown)) <= width:
                return _line(figures, shown)
            shown[place] = min(shorter, len(figures[place].wordings) - 1)
    for place in by_importance[:-1]:
        for separator in (SEPARATOR, NARROW_SEPARATOR):
            if len(line := _line(figures, shown, separator)) <= width:
                return line
        del shown[place]
    return _line(figures, shown)


def _line(figures: Sequence[Figure], shown: dict[int, int], separator: str = SEPARATOR) -> str:
    return separator.join(figures[place].wordings[shorter] for place, shorter in shown.items())
