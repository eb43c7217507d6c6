"""Whole trainings: `mloc run` against scripts with the same TRL calls; checkpoints or none."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from training_options import Options
from training_tasks import Measured, Trainings

DEFAULT_SAVE_STEPS = 500
"""Steps between two checkpoints where a template says nothing."""


def measure_overhead(options: Options, folder: Path, library: Path) -> dict[str, Any]:
    """Returns the seconds of loop and command of both, and whether their losses are the same."""
    trainings = _warmed_up(options, folder, library)
    how = {"max_steps": options.steps, "save_strategy": "no"}
    found: dict[str, Any] = {"parameters": trainings.parameters}
    for method in options.methods:
        bare, mloc = _in_turns(
            options.rounds,
            lambda method=method: trainings.run_bare(method, **how),
            lambda method=method: trainings.run_mloc(method, **how),
        )
        found[method] = {
            "bare": [_shown(each) for each in bare],
            "mloc": [_shown(each) for each in mloc],
            "ratio_loop": _ratio([each.loop_s for each in mloc], [each.loop_s for each in bare]),
            "more_wall_s": round(
                statistics.median(each.wall_s for each in mloc)
                - statistics.median(each.wall_s for each in bare),
                2,
            ),
            "equal": _compared(bare[0].history, mloc[0].history),
        }
    return found


def measure_checkpoints(options: Options, folder: Path, library: Path) -> dict[str, Any]:
    """Returns what checkpoints add to a loop, with mloc and with TRL alone.

    They come more often than by default, so that what they cost stands out of the noise; its share
    at the default interval follows from it.
    """
    trainings = _warmed_up(options, folder, library)
    steps = {"max_steps": options.checkpoint_steps, "per_device_train_batch_size": 1}
    without = {**steps, "save_strategy": "no"}
    saving = {**steps, "save_strategy": "steps", "save_steps": options.save_steps}
    # The last step is always saved.
    count = -(-options.checkpoint_steps // options.save_steps)
    found: dict[str, Any] = {"parameters": trainings.parameters, "checkpoints": count}
    for name, run in {"mloc": trainings.run_mloc, "bare": trainings.run_bare}.items():
        plain, saved = _in_turns(
            options.rounds,
            lambda run=run: run("sft", **without),
            lambda run=run: run("sft", **saving),
        )
        found[name] = _cost(plain, saved, count, options.checkpoint_steps)
    return found


def _cost(
    plain: Sequence[Measured], saved: Sequence[Measured], count: int, steps: int
) -> dict[str, Any]:
    without_s = statistics.median(each.loop_s for each in plain)
    with_s = statistics.median(each.loop_s for each in saved)
    each_s = (with_s - without_s) / count
    interval_s = DEFAULT_SAVE_STEPS * without_s / steps
    return {
        "loop_s_without": [round(each.loop_s, 2) for each in plain],
        "loop_s_with": [round(each.loop_s, 2) for each in saved],
        "cpu_s_without": [round(each.cpu_s, 1) for each in plain],
        "cpu_s_with": [round(each.cpu_s, 1) for each in saved],
        "s_per_checkpoint": round(each_s, 3),
        "share_of_the_loop": round(1 - without_s / with_s, 4),
        f"share_every_{DEFAULT_SAVE_STEPS}_steps": round(each_s / (interval_s + each_s), 5),
    }


def _warmed_up(options: Options, folder: Path, library: Path) -> Trainings:
    """Returns trainings after one that nobody measures: files are cached, the home is made."""
    trainings = Trainings(options, folder, library)
    trainings.run_mloc("sft", max_steps=1, save_strategy="no")
    return trainings


def _in_turns(
    rounds: int, one: Callable[[], Measured], other: Callable[[], Measured]
) -> tuple[list[Measured], list[Measured]]:
    """Measures two things; who goes first changes from round to round."""
    ones, others = list[Measured](), list[Measured]()
    for number in range(rounds):
        turns = [(ones, one), (others, other)]
        for found, measure in reversed(turns) if number % 2 else turns:
            found.append(measure())
    return ones, others


def _shown(measured: Measured) -> dict[str, Any]:
    return {
        "loop_s": round(measured.loop_s, 2),
        "wall_s": round(measured.wall_s, 2),
        "cpu_s": round(measured.cpu_s, 1),
        **measured.facts,
    }


def _ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    return round(statistics.median(ours) / statistics.median(theirs), 3)


def _compared(
    bare: Sequence[Mapping[str, float]], mloc: Sequence[Mapping[str, float]]
) -> dict[str, Any]:
    """Returns how far apart losses are, and the gradients' norms: GRPO's loss is always about 0."""
    if len(bare) != len(mloc):
        raise SystemExit(f"the bare script logged {len(bare)} steps, mloc {len(mloc)}")
    found: dict[str, Any] = {"steps": len(bare)}
    for name in ("loss", "grad_norm"):
        pairs = [(one[name], other[name]) for one, other in zip(bare, mloc, strict=True)]
        found[name] = {
            "equal_steps": sum(one == other for one, other in pairs),
            "largest_difference": max(abs(one - other) for one, other in pairs),
            "first": bare[0][name],
            "last": bare[-1][name],
        }
    return found
