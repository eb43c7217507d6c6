"""The most memory that a command takes: of the GPU, or on a CPU of the largest of its processes."""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Self

import psutil

LOOK_EVERY_S = 0.1
"""PyTorch keeps what it has had of a GPU until its process ends: nothing is missed in between."""


class PeakMemory:
    """Looks while its block runs, at this process's children or at the first GPU.

    What the GPU held before does not count. Nothing else may use it meanwhile.

    Args:
        gpu: Whether to look at the GPU.

    Attributes:
        peak: Bytes.
    """

    def __init__(self, *, gpu: bool) -> None:
        self.peak = 0
        self._gpu = gpu
        self._before = _gpu_bytes() if gpu else 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(LOOK_EVERY_S):
            now = _gpu_bytes() - self._before if self._gpu else _largest_child()
            self.peak = max(self.peak, now)


def _gpu_bytes() -> int:
    import torch

    free, total = torch.cuda.mem_get_info(0)
    return total - free


def _largest_child() -> int:
    largest = 0
    for child in psutil.Process().children(recursive=True):
        try:
            largest = max(largest, child.memory_info().rss)
        except psutil.NoSuchProcess:
            continue  # it ended in between
    return largest
