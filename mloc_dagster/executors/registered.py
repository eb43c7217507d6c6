"""What somebody registered by entry point: task types, metrics, rewards; ours and anyone's."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib.metadata import EntryPoint
from typing import Any

from mloc_dagster.errors import TerminalError, UnknownNameError
from mloc_dagster.plugins import entry_points

REWARDS_GROUP = "mloc_dagster.reward_functions"
METRICS_GROUP = "mloc_dagster.metrics"


@cache
def registered_function(group: str, kind: str, name: str) -> Callable[..., Any]:
    """Returns the function of a name.

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
        origins = " and ".join(_origin(entry) for entry in found)
        raise TerminalError(f"the {kind} {name!r} is registered twice: by {origins}")
    return _load(found[0], kind)


def _load(entry: EntryPoint, kind: str) -> Callable[..., Any]:
    try:
        function = entry.load()
    except Exception as error:
        raise TerminalError(
            f"the {kind} {entry.name!r} comes from {_origin(entry)}, which cannot be loaded: "
            f"{type(error).__name__}: {error}"
        ) from error
    if not callable(function):
        raise TerminalError(
            f"the {kind} {entry.name!r} from {_origin(entry)} is no function: {function!r}"
        )
    return function


def _origin(entry: EntryPoint) -> str:
    where = f"{entry.dist.name} {entry.dist.version}" if entry.dist else "no distribution"
    return f"the distribution {where} ({entry.value})"
