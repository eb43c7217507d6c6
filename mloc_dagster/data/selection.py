"""`data.only`: the rows of a source that hold given values."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from datetime import date

import msgspec

from mloc_dagster.errors import DataError, nearest_hint
from mloc_dagster.results import SourceRow
from mloc_dagster.schema import known_names

UNSELECTED = SourceRow("")
"""Stands for a row of the source that is not selected, where rows are counted."""

_TOLD_VALUES = 1000
"""So many values of a column are kept in mind, to name the nearest of one that no row holds."""


class Selection:
    """Which rows of a source are taken.

    Args:
        only: Values by column; of nothing, all rows are taken.

    Attributes:
        columns: What it reads of a row.
    """

    def __init__(self, only: Mapping[str, str]) -> None:
        self.columns = tuple(only)
        self._only = only
        self._seen: dict[str, set[str]] = {name: set() for name in only}
        self._found = False

    def check_columns(self, known: Iterable[str], where: str) -> None:
        """Makes sure that the source has the columns.

        Raises:
            DataError: If one is not there; names the nearest.
        """
        names = list(known)
        for name in self.columns:
            if name not in names:
                hint = known_names(name, names, "columns")
                raise DataError(f"{where} has no column {name!r} to select by{hint}", "only")

    def takes(self, row: Mapping[str, object]) -> bool:
        """Returns whether a row holds the values."""
        taken = True
        for name, wanted in self._only.items():
            text, seen = _text(row.get(name)), self._seen[name]
            if text is not None and len(seen) < _TOLD_VALUES:
                seen.add(text)
            taken = taken and text == wanted
        self._found = self._found or taken
        return taken

    def rows(self, rows: Iterable[SourceRow], where: str) -> Iterator[SourceRow]:
        """Yields rows without `UNSELECTED`.

        Args:
            rows: Each was asked for with `takes`, if it was not left out by a slice.
            where: What the source is called.

        Raises:
            DataError: If none is left, at the end.
        """
        yield from (each for each in rows if each is not UNSELECTED)
        self._check_found(where)

    def records[RecordT: Mapping[str, object]](
        self, records: Iterable[RecordT], where: str
    ) -> Iterator[RecordT]:
        """Yields the records that it takes; raises as `rows` does."""
        yield from filter(self.takes, records)
        self._check_found(where)

    def _check_found(self, where: str) -> None:
        if self._found:
            return
        for name, wanted in self._only.items():
            if wanted not in (seen := self._seen[name]):
                held = nearest_hint(wanted, seen).replace("known:", "there are:")
                raise DataError(
                    f"no row of {where} has {wanted!r} in column {name!r}{held}", "only"
                )
        together = " and ".join(f"{value!r} in {name!r}" for name, value in self._only.items())
        raise DataError(f"no row of {where} has {together}", "only")


def _text(value: object) -> str | None:
    """Returns a cell as it is compared; None of one that holds nothing."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, date):  # and datetime
        return value.isoformat()
    if value != value:  # NaN, as data frames write null
        return None
    return msgspec.json.encode(value, enc_hook=str).decode()
