"""Benchmarks of lm-evaluation-harness on a model in memory, and checks for optional packages.

The library is in no lock: it brings scikit-learn, which transformers then imports wherever it
generates, 1.3 s more for each process that starts.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, get_args

from mloc_dagster.errors import MissingExtraError, TerminalError, nearest_hint
from mloc_dagster.schema import REPORTERS, Harness, Tracker, TrainingSpec, reporters
from mloc_dagster.tracking import check_installed

TOLD_EVERY_S = 60.0
"""A benchmark may take longer than a training is allowed to be silent."""

_NO_FILTER = "none"


def check_harness_installed() -> None:
    """Checks that the library is there.

    Raises:
        MissingExtraError: If it is not.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise MissingExtraError("evaluation.harness", "eval")


def harness_metrics(
    model: Any, tokenizer: Any, harness: Harness, log: Callable[[str], None]
) -> dict[str, float]:
    """Returns what benchmarks say of a model, as `task/metric`.

    Where a task filters answers in several ways, the filter's name is a third part:
    `gsm8k/exact_match/strict-match`.

    Args:
        model: A causal language model, in evaluation mode.
        tokenizer: Its tokenizer.
        harness: Which benchmarks, and how.
        log: Hears once a minute how far it is.

    Raises:
        MissingExtraError: If lm-evaluation-harness is not installed.
        TerminalError: If there is no such task, or it cannot be run as asked.
    """
    check_harness_installed()
    evaluate = import_module("lm_eval").simple_evaluate
    tasks = _task_manager(harness)
    asked = _known(harness, tasks)
    limit = harness.limit
    try:
        found = evaluate(
            model=_spoken(model, tokenizer, harness.batch_size, log),
            tasks=asked,
            task_manager=tasks,
            num_fewshot=harness.num_fewshot,
            batch_size=harness.batch_size,
            limit=int(limit) if limit is not None and limit >= 1 else limit,
            apply_chat_template=harness.apply_chat_template,
            bootstrap_iters=0,  # for standard errors, which nobody is shown
            log_samples=False,
        )
    except (ValueError, KeyError) as error:
        raise TerminalError(f"evaluation.harness: lm_eval says: {error}") from error
    return {
        name: value for task, results in _results(found) for name, value in _figures(task, results)
    }


def _task_manager(harness: Harness) -> Any:
    place = harness.include_path
    if place is not None and not Path(place).expanduser().is_dir():
        raise TerminalError(f"evaluation.harness.include_path: {place!r} is no folder")
    manager = import_module("lm_eval.tasks").TaskManager
    return manager(include_path=str(Path(place).expanduser()) if place else None)


def _known(harness: Harness, manager: Any) -> list[str]:
    """Returns the names of the tasks asked for, patterns resolved."""
    asked: list[str] = []
    for name in harness.tasks:
        matching = manager.match_tasks([name])
        if not matching:
            hint = nearest_hint(name, manager.all_tasks)
            raise TerminalError(f"evaluation.harness.tasks: there is no task {name!r}{hint}")
        asked += matching
    return list(dict.fromkeys(asked))


def _spoken(model: Any, tokenizer: Any, batch_size: int, log: Callable[[str], None]) -> Any:
    """Returns the model as the library takes it, which tells how far it is."""
    base: Any = import_module("lm_eval.models.huggingface").HFLM

    class Spoken(base):
        """Counts its batches."""

        batches = 0
        told_at = time.monotonic()

        def _model_call(self, *args: Any, **kwargs: Any) -> Any:
            self._count()
            return super()._model_call(*args, **kwargs)

        def _model_generate(self, *args: Any, **kwargs: Any) -> Any:
            self._count()
            return super()._model_generate(*args, **kwargs)

        def _count(self) -> None:
            self.batches += 1
            if time.monotonic() - self.told_at >= TOLD_EVERY_S:
                self.told_at = time.monotonic()
                log(f"evaluation.harness: {self.batches:,} batches done")

    return Spoken(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)


def _results(found: Mapping[str, Any] | None) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if found is not None:  # of several processes, those that are not the first
        yield from found["results"].items()


def _figures(task: str, results: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Yields the figures of a task; the library's keys are `metric,filter`."""
    for key, value in results.items():
        metric, _, filtered = key.partition(",")
        is_figure = isinstance(value, int | float) and filtered
        if not is_figure or metric.endswith("_stderr"):
            continue
        name = metric if filtered == _NO_FILTER else f"{metric}/{filtered}"
        yield f"{task}/{name}", float(value)


def check_packages(spec: TrainingSpec) -> None:
    """Checks that what the spec asks for is installed on this worker.

    What only GPUs need is met where the training knows its device (`devices`, `arguments`).

    Raises:
        MissingExtraError: If an extra of mloc is missing.
        TerminalError: If another package is, or `report_to` names what nobody knows.
    """
    if spec.evaluation is not None and spec.evaluation.harness is not None:
        check_harness_installed()
    for name in reporters(spec.training):
        _check_reporter(name)


def _check_reporter(name: str) -> None:
    package = REPORTERS.get(name)
    if package is None:
        hint = nearest_hint(name, REPORTERS)
        raise TerminalError(f"training.report_to: nothing is called {name!r}{hint}")
    if name in get_args(Tracker):
        check_installed("training.report_to", [name])
        return
    if importlib.util.find_spec(package) is not None:
        return
    raise TerminalError(
        f"training.report_to: {name} needs the package {package}, which is not installed on this "
        f"worker: install it, or take {name} out of report_to"
    )
