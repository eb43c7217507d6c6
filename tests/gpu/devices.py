"""Which GPUs this machine has."""

from __future__ import annotations

import importlib.util


def has_gpu() -> bool:
    return gpus() > 0


def gpus() -> int:
    if importlib.util.find_spec("torch") is None:
        return 0
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0
