"""Opening indexes, by whichever engine they are of."""

from __future__ import annotations

import importlib
from functools import cache
from typing import cast

from mloc_dagster.errors import MissingExtraError
from mloc_dagster.index.protocol import IndexOpener, OpenIndex
from mloc_dagster.schema import Index, find_index_engine, index_engine_types


def open_index(index: Index) -> OpenIndex:
    """Opens an index, which need not exist.

    Raises:
        MissingExtraError: If the engine's library is not installed.
        InputError: If a secret is missing or the address is wrong.
        TransientError: If the server cannot be reached.
    """
    return _opener(find_index_engine(index.engine).opener).open(index)


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
