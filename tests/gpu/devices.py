"""Whether this machine has a GPU."""

from __future__ import annotations

import importlib.util


def has_gpu() -> bool:
    if importlib.util.find_spec("torch") is None:
        return False
    import torch

    return torch.cuda.is_available()
