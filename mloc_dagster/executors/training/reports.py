"""What follows a training's figures: TensorBoard's files, and the services of `report_to`."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

FOLDER = "logs"
TENSORBOARD_FOLDER = "tensorboard"


def take_tensorboard(config: Any) -> None:
    """Takes TensorBoard out of a trainer's config: its files would lie among the checkpoints."""
    config.report_to = [name for name in config.report_to if name != "tensorboard"]


def tensorboard_callback(task_folder: Path, log: Callable[[str], None]) -> Any:
    """Returns what writes the figures for TensorBoard to `logs/tensorboard`.

    None where TensorBoard is not installed, which is logged.
    """
    if importlib.util.find_spec("tensorboard") is None:
        log("TensorBoard is not installed: the figures are in training.json only")
        return None
    from torch.utils.tensorboard import SummaryWriter
    from transformers.integrations.integration_utils import TensorBoardCallback

    return TensorBoardCallback(SummaryWriter(str(task_folder / FOLDER / TENSORBOARD_FOLDER)))


def end_reports() -> None:
    """Ends the runs that reporters leave open.

    Each expects to be ended as Python exits, which a forked process does without their hooks.
    """
    wandb = sys.modules.get("wandb")
    if wandb is not None and wandb.run is not None:
        wandb.finish()
    mlflow = sys.modules.get("mlflow")
    if mlflow is not None and mlflow.active_run() is not None:
        mlflow.end_run()
