"""Opening indexes, by whichever engine they are of."""

from __future__ import annotations

import importlib
from functools import cache
from typing import cast

from mloc_dagster.errors import InputError, MissingExtraError, UnknownNameError
from mloc_dagster.index.files import delete_files
from mloc_dagster.index.protocol import IndexInfo, IndexOpener, OpenIndex
from mloc_dagster.schema import Index, find_index_engine, index_engine_types


def open_index(index: Index) -> OpenIndex:
    """Opens an index, which need not exist.

    Raises:
        MissingExtraError: If the engine's library is not installed.
        InputError: If a secret is missing or the address is wrong.
        TransientError: If the server cannot be reached.
    """
    return _opener(find_index_engine(index.engine).opener).open(index)


def index_info(index: Index) -> IndexInfo | None:
    """Returns what an index is; None if there is no such index.

    Raises:
        MlocError: What `open_index` raises.
    """
    opened = open_index(index)
    try:
        return opened.info()
    finally:
        opened.close()


def find_index(name: str, engine: str | None = None) -> Index:
    """Returns the index of a name where mloc's engines keep them by default.

    Args:
        name: Its name.
        engine: Its engine; needed only where two have an index of that name.

    Raises:
        UnknownNameError: If there is no such index, or no such engine; names the nearest.
        InputError: If several engines have one.
    """
    if engine is not None:
        find_index_engine(engine)
    there = [each for each in list_indexes() if engine in (None, each.engine)]
    found = [each for each in there if each.name == name]
    if not found:
        raise UnknownNameError("index", name, [each.name for each in there])
    if len(found) > 1:
        engines = " and ".join(each.engine for each in found)
        raise InputError(f"{engines} have an index {name!r} each: say which engine is meant")
    return found[0]


def drop_index(index: Index) -> None:
    """Removes an index with everything that belongs to it.

    Raises:
        MlocError: What `open_index` raises.
    """
    opened = open_index(index)
    try:
        opened.drop()
    finally:
        opened.close()
    delete_files(index)


def list_indexes() -> list[Index]:
    """Returns the indexes that mloc made where its engines keep them by default."""
    found: list[Index] = []
    for engine in index_engine_types().values():
        if not engine.local:
            continue
        try:
            names = _opener(engine.opener).names()
        except MissingExtraError:
            continue
        found += [Index(engine=engine.name, name=name) for name in names]
    return found


def index_names(engine: str) -> list[str]:
    """Returns the names of the indexes that an engine has made where it keeps them by default."""
    found = find_index_engine(engine)
    return _opener(found.opener).names() if found.local else []


@cache
def _opener(path: str) -> IndexOpener:
    module, _, name = path.partition(":")
    return cast("IndexOpener", getattr(importlib.import_module(module), name)())
