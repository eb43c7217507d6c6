"""Optional packages that a training asks for, looked for before anything is loaded."""

from __future__ import annotations

import importlib.util

from mloc_dagster.errors import MissingExtraError, TerminalError, nearest_hint
from mloc_dagster.executors.training.harness import check_harness_installed
from mloc_dagster.schema.reporters import REPORTERS, reporters
from mloc_dagster.schema.task import TrainingSpec


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
    if importlib.util.find_spec(package) is not None:
        return
    if name == "tensorboard":
        raise MissingExtraError("training.report_to: tensorboard", "hf")
    raise TerminalError(
        f"training.report_to: {name} needs the package {package}, which is not installed on this "
        f"worker: install it, or take {name} out of report_to"
    )
