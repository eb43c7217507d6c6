"""CPU time of process trees, over a window."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import psutil


class CpuWindow:
    """Counts from its creation.

    Args:
        groups: The roots of each group's process trees.
    """

    def __init__(self, groups: Mapping[str, Sequence[int]]) -> None:
        self._groups = groups
        self._started = time.monotonic()
        self._before = self._seconds()

    def cores(self) -> dict[str, float]:
        """Returns the share of one core that each group has used so far."""
        window_s = time.monotonic() - self._started
        after = self._seconds()
        return {name: round((after[name] - self._before[name]) / window_s, 4) for name in after}

    def _seconds(self) -> dict[str, float]:
        return {name: sum(map(tree_s, pids)) for name, pids in self._groups.items()}


def tree_s(pid: int) -> float:
    """Returns the CPU seconds of a process and of all that it started.

    A child that has ended is counted by its parent: a connection of PostgreSQL that was closed
    is not lost.
    """
    total = 0.0
    root = psutil.Process(pid)
    for each in (root, *root.children(recursive=True)):
        try:
            times = each.cpu_times()
        except psutil.NoSuchProcess:
            continue  # ended since it was listed: its parent has its time now
        total += times.user + times.system + times.children_user + times.children_system
    return total
