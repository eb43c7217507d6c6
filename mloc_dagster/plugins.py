"""What installed distributions registered: task types, engines, metrics, rewards, tools."""

from __future__ import annotations

import importlib.metadata
import inspect
import sys
from collections.abc import Callable, Collection, Mapping
from functools import cache, lru_cache
from importlib.metadata import EntryPoint, EntryPoints
from typing import Any, Protocol

from mloc_dagster.errors import TerminalError, UnknownNameError

TASK_TYPES_GROUP = "mloc_dagster.task_types"
ENGINES_GROUP = "mloc_dagster.engines"
REWARDS_GROUP = "mloc_dagster.reward_functions"
METRICS_GROUP = "mloc_dagster.metrics"
TOOLS_GROUP = "mloc_dagster.tools"
INDEX_ENGINES_GROUP = "mloc_dagster.index_engines"


def entry_points(*, group: str) -> EntryPoints:
    """Returns the entry points of a group.

    Python's own function reads a file of every distribution at each call: 20 ms with 290 of them,
    which templates of many tasks paid several times a task. Here they are read once for all groups.

    Args:
        group: Such as `mloc_dagster.task_types`.
    """
    return _read(group, tuple(sys.path))


@lru_cache(maxsize=32)
def _read(group: str, path: tuple[str, ...]) -> EntryPoints:
    return _read_all(path).select(group=group)


@lru_cache(maxsize=8)
def _read_all(path: tuple[str, ...]) -> EntryPoints:
    del path  # what another path leads to is not known yet
    return importlib.metadata.entry_points()


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


class Named(Protocol):
    """What a registry holds."""

    @property
    def name(self) -> str:
        """The name of its entry point."""
        ...


type _Entries = tuple[tuple[str, str], ...]


class Registry[DescriptorT: Named]:
    """The descriptors of an entry-point group, each loaded once.

    One that cannot be loaded is an error only for those who name it.

    Args:
        group: The entry-point group.
        kind: What it holds, in the user's words: "task type".
        descriptor: The class of its descriptors.
        refuse: Says what is wrong with a descriptor beside those that are known already, ours
            first, as the end of a sentence; None if nothing is.
        order: Gives what descriptors are sorted by.
    """

    def __init__(
        self,
        group: str,
        kind: str,
        descriptor: type[DescriptorT],
        refuse: Callable[[DescriptorT, Collection[DescriptorT]], str | None],
        order: Callable[[DescriptorT], tuple[bool | int | str, ...]],
    ) -> None:
        self._group = group
        self._kind = kind
        self._descriptor = descriptor
        self._refuse = refuse
        self._order = order
        self._registered: EntryPoints | None = None
        self._loaded: tuple[_Entries, Mapping[str, DescriptorT], Mapping[str, str]] = ((), {}, {})

    def known(self) -> Mapping[str, DescriptorT]:
        """Returns every descriptor that can be used, by name, in order."""
        return self._read()[0]

    def find(self, name: str) -> DescriptorT:
        """Returns the descriptor of a name.

        Raises:
            UnknownNameError: If nobody registered that name.
            TerminalError: If two distributions did, or the one that did cannot be loaded.
        """
        known, broken = self._read()
        if name in known:
            return known[name]
        if name in broken:
            raise TerminalError(broken[name])
        raise UnknownNameError(self._kind, name, known)

    def _read(self) -> tuple[Mapping[str, DescriptorT], Mapping[str, str]]:
        registered = entry_points(group=self._group)
        if registered is not self._registered:
            entries = tuple((each.name, each.value) for each in registered)
            if entries != self._loaded[0]:
                self._loaded = (entries, *self._load(entries))
            self._registered = registered
        return self._loaded[1:]

    def _load(self, entries: _Entries) -> tuple[Mapping[str, DescriptorT], Mapping[str, str]]:
        found: dict[str, DescriptorT] = {}
        broken: dict[str, str] = {}
        ours_first = sorted(entries, key=lambda each: not each[1].startswith("mloc_dagster."))
        for name in dict.fromkeys(name for name, _ in ours_first):
            try:
                found[name] = self._load_one(name, found.values())
            except TerminalError as error:
                broken[name] = str(error)
        known = sorted(found.values(), key=self._order)
        return {each.name: each for each in known}, broken

    def _load_one(self, name: str, others: Collection[DescriptorT]) -> DescriptorT:
        loaded = load_registered(self._group, self._kind, name)
        if not isinstance(loaded, self._descriptor):
            expected = f"{self._descriptor.__module__}.{self._descriptor.__name__}"
            wrong = f"is {loaded!r}, expected a {expected}"
        elif loaded.name != name:
            wrong = f"calls itself {loaded.name!r}"
        else:
            wrong = self._refuse(loaded, others)
            if wrong is None:
                return loaded
        (entry, *_) = entry_points(group=self._group).select(name=name)
        raise TerminalError(f"the {self._kind} {name!r} from {origin_of(entry)} {wrong}")
