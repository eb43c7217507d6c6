"""The tool `lookup`: what stands under a key in a table of facts."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable, Mapping
from functools import lru_cache

from mloc_dagster.data.files import FileTable
from mloc_dagster.errors import DataError, UnknownNameError
from mloc_dagster.schema import data_suffix

_MOST_GUESSED = 10_000
"""Keys of a table in which the nearest one is looked for; among more it takes seconds."""

_reading = threading.Lock()


def lookup(key: str, *, file: str) -> str:
    """Looks up what is known under a key.

    Args:
        key: What to look up, such as "capital of Peru".
        file: The table: an object in a JSON file, or rows (JSON, JSON lines, CSV, Parquet) whose
            first column has the keys.
    """
    # A warm worker has other tasks, and files change: it is read again if it is another one.
    versions = FileTable(file).versions
    with _reading:
        facts = _read(file, versions)
    found = facts.get(_plain(key))
    if found is None:
        names = [name for name, _ in facts.values()] if len(facts) <= _MOST_GUESSED else ()
        raise UnknownNameError("key", key, names)
    return found[1]


@lru_cache(maxsize=8)
def _read(file: str, versions: tuple[str, ...]) -> Mapping[str, tuple[str, str]]:
    """Returns keys as they are written and their values, by plain keys; the first one counts."""
    del versions
    table = FileTable(file)
    rows = [row for split in table.splits for row in table.records(split)]
    pairs: Iterable[tuple[object, object]] = map(_pair, rows)
    if data_suffix(file) == ".json" and len(rows) == 1:
        pairs = rows[0].items()
    found: dict[str, tuple[str, str]] = {}
    for key, value in pairs:
        found.setdefault(_plain(str(key)), (str(key), _text(value)))
    if not found:
        raise DataError(f"{file} has no rows")
    return found


def _pair(row: Mapping[str, object]) -> tuple[object, object]:
    key, *values = row.values()
    return key, values[0] if len(values) == 1 else dict(list(row.items())[1:])


def _plain(key: str) -> str:
    return " ".join(key.split()).casefold()


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
