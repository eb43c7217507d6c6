"""What installed distributions registered by entry point, read from disk once."""

from __future__ import annotations

import importlib.metadata
import sys
from functools import lru_cache
from importlib.metadata import EntryPoints


def entry_points(*, group: str) -> EntryPoints:
    """Returns the entry points of a group.

    Python's own function reads a file of every distribution at each call: 20 ms with 290 of them,
    which templates of many tasks paid several times a task.

    Args:
        group: Such as `mloc_dagster.task_types`.
    """
    return _read(group, tuple(sys.path))


@lru_cache(maxsize=32)
def _read(group: str, path: tuple[str, ...]) -> EntryPoints:
    del path  # what another path leads to is not known yet
    return importlib.metadata.entry_points(group=group)
