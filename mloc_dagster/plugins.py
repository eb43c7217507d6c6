"""What installed distributions registered by entry point: task types, metrics, rewards."""

from __future__ import annotations

import importlib.metadata
import inspect
import sys
from collections.abc import Callable, Mapping
from functools import cache, lru_cache
from importlib.metadata import EntryPoint, EntryPoints
from typing import Any

from mloc_dagster.errors import TerminalError, UnknownNameError

TASK_TYPES_GROUP = "mloc_dagster.task_types"
REWARDS_GROUP = "mloc_dagster.reward_functions"
METRICS_GROUP = "mloc_dagster.metrics"


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


@cache
def load_registered(group: str, kind: str, name: str) -> Any:
    """Returns the object that is registered under a name.

    Args:
        group: The entry-point group.
        kind: What the group holds, in the user's words: "reward function".
        name: The name.

    Raises:
        UnknownNameError: If nobody registered that name.
        TerminalError: If two distributions registered it, or it cannot be imported.
    """
    registered = entry_points(group=group)
    found = list(registered.select(name=name))
    if not found:
        raise UnknownNameError(kind, name, registered.names)
    if len({entry.value for entry in found}) > 1:
        origins = " and ".join(origin_of(entry) for entry in found)
        raise TerminalError(f"the {kind} {name!r} is registered twice: by {origins}")
    entry = found[0]
    try:
        return entry.load()
    except Exception as error:
        raise TerminalError(
            f"the {kind} {name!r} comes from {origin_of(entry)}, which cannot be loaded: "
            f"{type(error).__name__}: {error}"
        ) from error


def registered_function(group: str, kind: str, name: str) -> Any:
    """Returns the function that is registered under a name.

    Raises:
        UnknownNameError: If nobody registered that name.
        TerminalError: If two distributions registered it, it cannot be imported, or it is no
            function.
    """
    function = load_registered(group, kind, name)
    if not callable(function):
        (entry, *_) = entry_points(group=group).select(name=name)
        raise TerminalError(
            f"the {kind} {name!r} from {origin_of(entry)} is no function: {function!r}"
        )
    return function


def unfit_options(
    function: Callable[..., Any], arguments: int, options: Mapping[str, Any]
) -> str | None:
    """Returns why a registered function does not take the options of a template, None if it does.

    Args:
        function: The function.
        arguments: How many positional arguments stand before its options.
        options: Its keyword arguments.
    """
    signature = inspect.signature(function)
    try:
        signature.bind(*[None] * arguments, **options)
    except TypeError as error:
        taken = ", ".join(list(signature.parameters)[arguments:]) or "none"
        return f"{error}; it takes {taken}"
    return None


def origin_of(entry: EntryPoint) -> str:
    """Returns which distribution an entry point is from, in words."""
    where = f"{entry.dist.name} {entry.dist.version}" if entry.dist else "no distribution"
    return f"the distribution {where} ({entry.value})"
