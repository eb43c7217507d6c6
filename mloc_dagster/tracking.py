"""Runs of experiment trackers: MLflow, TensorBoard, Weights & Biases.

A task is one run of each tracker, which is found again by the task's id. So a training that goes
on, and a result that is aggregated a second time, change the run that is there. Servers, projects
and keys are the environment's to name, in the trackers' own variables.

Trackers keep state for a whole process, print, and may wait minutes for a server. So the figures
of a finished task are sent by a process of their own: `python -m mloc_dagster.tracking`.
"""

from __future__ import annotations

import importlib.util
import math
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from mloc_dagster.errors import MissingExtraError, TaskCancelled, TransientError
from mloc_dagster.redaction import redact
from mloc_dagster.schema import Tracker
from mloc_dagster.settings import settings

PROJECT = "mloc"
"""The experiment or project where the environment names none."""

SENDING_S = 180.0
"""Seconds after which a tracker that does not take a task's figures is given up."""

TASK_TAG = "mloc.task_id"
"""By which a task's run in MLflow is found again."""

FIGURES = "evaluation"
"""What names of figures begin with, and the file or folder that holds them."""


class TrackedRun(BaseModel):
    """What a tracker is told of a task.

    Attributes:
        task_id: The task.
        name: The run's name, where neither the template nor the environment gives one.
        given_name: The name that the template gives.
        params: What was computed: model, dataset. The same whenever the task runs again.
        tags: To find it by, and where its results are.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    task_id: str
    name: str
    given_name: str | None = None
    params: dict[str, str] = Field(default_factory=dict)
    tags: dict[str, str] = Field(default_factory=dict)


class Report(BaseModel):
    """Figures of a finished task, for one tracker.

    Attributes:
        tracker: Which.
        run: The task's run.
        figures: By name.
        at: When they were computed; the same each time that they are sent.
        folder: Where files may lie until they are taken; local.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    tracker: Tracker
    run: TrackedRun
    figures: dict[str, float]
    at: AwareDatetime
    folder: Path


class Sent(BaseModel):
    """What became of a report.

    Attributes:
        place: Where the figures are to be seen: an address, or a file.
        error: Why they are not; empty if they are.
        files: Files that belong into the task's folder, below it, each with its present place.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    place: str = ""
    error: str = ""
    files: dict[str, Path] = Field(default_factory=dict)


def check_installed(place: str, trackers: Iterable[str]) -> None:
    """Checks that trackers' packages are there.

    Args:
        place: Where the template asks for them.
        trackers: Their names, which are those of the packages.

    Raises:
        MissingExtraError: If one is not.
    """
    for name in trackers:
        if importlib.util.find_spec(name) is None:
            raise MissingExtraError(f"{place}: {name}", "tracking")


def send(report: Report) -> Sent:
    """Sends a task's figures to a tracker; says so if that fails, and never raises for it."""
    command = [sys.executable, "-P", "-m", "mloc_dagster.tracking"]
    try:
        done = subprocess.run(  # noqa: S603  our own module
            command,
            input=report.model_dump_json(),
            capture_output=True,
            text=True,
            timeout=SENDING_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Sent(error=f"no answer within {SENDING_S:.0f} s")
    try:
        return Sent.model_validate_json(done.stdout)
    except ValidationError:
        said = done.stderr.strip().splitlines()
        return Sent(error=redact(said[-1] if said else f"ended with code {done.returncode}"))


@contextmanager
def open_runs(trackers: Iterable[str], run: TrackedRun, folder: Path) -> Iterator[None]:
    """Opens a training's runs in this process; the trainer's own callbacks then report to them.

    Args:
        trackers: Which; TensorBoard has no runs.
        run: The task's run.
        folder: Where files go, unless the environment names another place.

    Raises:
        TransientError: If a tracker cannot be reached.
    """
    opened: list[Tracker] = []
    status = "FAILED"
    try:
        for name, open_run in _OPEN.items():
            if name in trackers:
                opened.append(name)
                _open(name, open_run, run, folder)
        yield
        status = "FINISHED"
    except TaskCancelled:
        status = "KILLED"
        raise
    finally:
        _end(status)


def _open(
    name: str, open_run: Callable[[TrackedRun, Path], str], run: TrackedRun, folder: Path
) -> None:
    try:
        open_run(run, folder)
    except Exception as error:
        raise TransientError(f"{name} cannot be reported to: {_reason(error)}") from error


def _end(status: str) -> None:
    """Ends all runs of this process, those that a trainer's callbacks have opened included.

    They expect to be ended as Python exits, which a forked process does without their hooks.
    """
    wandb: Any = sys.modules.get("wandb")
    if wandb is not None and wandb.run is not None:
        wandb.finish(exit_code=0 if status == "FINISHED" else 1)
    mlflow: Any = sys.modules.get("mlflow")
    if mlflow is not None and mlflow.active_run() is not None:
        mlflow.end_run(status)


def _open_mlflow(run: TrackedRun, folder: Path) -> str:
    os.environ.pop("MLFLOW_RUN_ID", None)  # the task says which run it is
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")  # of 7, which take 4 minutes
    if "MLFLOW_TRACKING_URI" not in os.environ:
        home = settings().home.absolute()
        home.mkdir(parents=True, exist_ok=True)
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{home}/mlflow.db"
    mlflow: Any = import_module("mlflow")
    if "MLFLOW_EXPERIMENT_ID" not in os.environ:
        name = os.environ.setdefault("MLFLOW_EXPERIMENT_NAME", PROJECT)
        mlflow.set_experiment(name)
    asked = f"tags.`{TASK_TAG}` = '{run.task_id}'"
    found = mlflow.search_runs(filter_string=asked, max_results=1, output_format="list")
    active = mlflow.start_run(
        run_id=found[0].info.run_id if found else None,
        run_name=None if found else run.given_name or os.environ.get("MLFLOW_RUN_NAME", run.name),
    )
    tags = {f"mloc.{_mlflow_name(name)}": value for name, value in run.tags.items()}
    mlflow.set_tags({TASK_TAG: run.task_id, **tags})
    mlflow.log_params(run.params)
    return f"{mlflow.get_tracking_uri()} run {active.info.run_id}"


def _open_wandb(run: TrackedRun, folder: Path) -> str:
    if "WANDB_DIR" not in os.environ:
        folder.mkdir(parents=True, exist_ok=True)
        os.environ["WANDB_DIR"] = str(folder)
    os.environ.setdefault("WANDB_NAME", run.name)
    os.environ.setdefault("WANDB_PROJECT", PROJECT)
    wandb: Any = import_module("wandb")
    told = {"task_id": run.task_id, **run.params, **run.tags}
    opened = wandb.init(id=run.task_id, name=run.given_name, resume="allow", config={"mloc": told})
    if opened.disabled:
        return "WANDB_MODE=disabled"
    return opened.url or f"{os.environ['WANDB_DIR']}/wandb"


_OPEN: Mapping[Tracker, Callable[[TrackedRun, Path], str]] = {
    "mlflow": _open_mlflow,
    "wandb": _open_wandb,
}


def _to_mlflow(report: Report) -> Sent:
    place = _open_mlflow(report.run, report.folder)
    metric = import_module("mlflow.entities").Metric
    # The same values at the same time are the same entries, however often they come.
    moment = math.floor(report.at.timestamp() * 1000)
    entries = [metric(_mlflow_name(k), v, moment, 0) for k, v in report.figures.items()]
    mlflow: Any = import_module("mlflow")
    mlflow.MlflowClient().log_batch(mlflow.active_run().info.run_id, metrics=entries)
    return Sent(place=redact(place))


def _mlflow_name(name: str) -> str:
    return re.sub(r"[^\w\-. :/]", "_", name)


def _to_wandb(report: Report) -> Sent:
    own = "WANDB_DIR" not in os.environ
    place = _open_wandb(report.run, report.folder)
    wandb: Any = import_module("wandb")
    # The summary alone: a history would grow each time that the figures are sent.
    wandb.run.summary.update(report.figures)
    wandb.finish()
    files = list(report.folder.glob("wandb/offline-run-*/*.wandb")) if own else []
    if not files:
        return Sent(place=place)
    # `wandb sync` takes folders that are called so. One name, as below.
    name = f"logs/wandb/offline-run-{FIGURES}/{files[0].name}"
    return Sent(place=name, files={name: files[0]})


def _to_tensorboard(report: Report) -> Sent:
    summary: Any = import_module("tensorboard.summary")
    writer = summary.Writer(str(report.folder))
    for name, value in report.figures.items():
        writer.add_scalar(name, value, 0, wall_time=report.at.timestamp())
    writer.close()
    (written,) = report.folder.glob("events.out.tfevents.*")
    # One name, so that figures that are sent again take the place of the earlier ones.
    name = f"logs/tensorboard/{FIGURES}/events.out.tfevents.{FIGURES}"
    return Sent(place=name, files={name: written})


_SEND: Mapping[Tracker, Callable[[Report], Sent]] = {
    "mlflow": _to_mlflow,
    "tensorboard": _to_tensorboard,
    "wandb": _to_wandb,
}


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    return redact(f"{type(error).__name__}: {text[:500]}")


@contextmanager
def sending_folder() -> Iterator[Path]:
    """Lends a folder for the files of one report."""
    with tempfile.TemporaryDirectory(prefix="mloc-report-") as folder:
        yield Path(folder)


def main() -> None:
    """Sends the report on stdin; says on stdout what became of it."""
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what trackers print is not the answer
    report = Report.model_validate_json(sys.stdin.read())
    try:
        sent = _SEND[report.tracker](report)
        _end("FINISHED")
    except Exception as error:  # noqa: BLE001  anything: the task is told
        sent = Sent(error=_reason(error))
    answer.write(sent.model_dump_json())
    answer.flush()


if __name__ == "__main__":
    main()
