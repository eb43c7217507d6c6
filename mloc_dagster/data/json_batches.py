"""Lines of JSON as Arrow tables, where all of them have the types of those before.

Arrow's reader guesses types of its own (it takes some texts for times), so it is told those that
the values of the first lines have as Python objects. It refuses what does not fit, and what Python
reads in another way; such lines are read one by one.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import pyarrow
import pyarrow.json

from mloc_dagster.results import RowBatch

_pa: Any = pyarrow  # it has no types

_MAX_FAILURES = 3
"""After so many blocks in a row that Arrow refused, the rest of a file is not tried."""


class JsonBatches:
    """Reads blocks of lines.

    Args:
        columns: What is needed of a row.
        required: Columns that a row may not lack; one that is null is read one by one, as Arrow
            does not tell these two apart.
    """

    def __init__(self, columns: Collection[str], required: Collection[str]) -> None:
        self._columns = columns
        self._required = required
        self._schema: Any = None
        self._failures = 0

    @property
    def learns(self) -> bool:
        """Whether it is of use to tell it what lines were that it did not read."""
        return self._failures < _MAX_FAILURES

    def read(self, lines: Sequence[bytes]) -> RowBatch | None:
        """Returns the rows of a block, one for each line; None where Arrow does not read them."""
        if self._schema is None or not self.learns:
            return None
        table = self._table(b"".join(lines))
        if table is None or table.num_rows != len(lines) or self._lacking(table):
            self._failures += 1
            return None
        self._failures = 0
        return RowBatch(table.select(list(self._columns)))

    def learn(self, rows: Sequence[Mapping[str, object]]) -> None:
        """Takes the types of rows that were read one by one."""
        try:
            schema = _pa.schema(
                [
                    _pa.field(name, _pa.array([row.get(name) for row in rows]).type)
                    for name in self._columns
                ]
            )
            known = [schema] if self._schema is None else [self._schema, schema]
            self._schema = _pa.unify_schemas(known, promote_options="permissive")
        except (_pa.ArrowException, TypeError, ValueError, OverflowError):
            self._failures = _MAX_FAILURES  # values of one column have no type in common

    def _table(self, data: bytes) -> Any:
        json: Any = pyarrow.json
        # A field of a struct that is not known must not be lost; other columns are not needed.
        nested = any("struct" in str(each.type) for each in self._schema)
        try:
            if not data.isascii():
                data.decode()  # Arrow does not look
            return json.read_json(
                _pa.BufferReader(data),
                read_options=json.ReadOptions(use_threads=False, block_size=len(data) + 1),
                parse_options=json.ParseOptions(
                    explicit_schema=self._schema,
                    unexpected_field_behavior="error" if nested else "ignore",
                ),
            )
        except (_pa.ArrowException, UnicodeDecodeError):
            return None

    def _lacking(self, table: Any) -> bool:
        return any(table.column(name).null_count for name in self._required)
