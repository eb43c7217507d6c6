"""Columns of rows as JSON, put together by column and not value by value."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from mloc_dagster.results.columns import arrow

_ESCAPED = re.compile(rb'["\\\x00-\x1f]')
"""What JSON does not have in a text as it is."""

_WHOLE = r"^-?\d+$"

_BLOCK_BYTES = 64 << 20
"""About what is put together at once; Arrow's texts end at 2 GiB."""


def with_columns(
    heads: Sequence[bytes], opening: str, table: Any, closing: str
) -> Iterator[memoryview]:
    """Yields rows as blocks of bytes: each its head, `opening`, its columns, and `closing`.

    Args:
        heads: What stands before the columns, for each row.
        opening: Between the head and the first column.
        table: The columns, as an Arrow table.
        closing: After the last column.
    """
    size = sum(map(len, heads)) + table.nbytes
    step = max(len(heads) * _BLOCK_BYTES // max(size, _BLOCK_BYTES), 1)
    for at in range(0, len(heads), step):
        some = table.slice(at, step).combine_chunks()
        yield _joined(heads[at : at + step], opening, some, closing)


def _joined(heads: Sequence[bytes], opening: str, table: Any, closing: str) -> memoryview:
    pa = arrow()
    pieces: list[Any] = [pa.array(heads, pa.string())]
    for name, column in zip(table.column_names, table.columns, strict=True):
        values, quote = _json_values(column.chunk(0))
        pieces += [f"{opening}{_encode(name)}:{quote}", values]
        opening = f"{quote},"
    end = opening[:-1] + closing
    return _bytes_of(
        _compute().binary_join_element_wise(
            *pieces, end, "", null_handling="replace", null_replacement="null"
        )
    )


def _json_values(column: Any) -> tuple[Any, str]:
    """Returns a column's values as JSON texts, null for null; and what belongs on both sides."""
    pa, kind = arrow(), column.type
    if pa.types.is_integer(kind) or pa.types.is_boolean(kind):
        return column.cast(pa.string()), ""
    if kind == pa.float64():
        return _json_numbers(column), ""
    if kind == pa.string() and _ESCAPED.search(_bytes_of(column)) is None:
        if not column.null_count:
            return column, '"'
        return _compute().binary_join_element_wise('"', column, '"', ""), ""
    values = [None if value is None else _encode(value) for value in column.to_pylist()]
    return pa.array(values, pa.string()), ""


def _json_numbers(column: Any) -> Any:
    """Returns fractions as JSON texts: Arrow writes 5.0 as 5, and infinity as a word."""
    pc = _compute()
    texts = column.cast(arrow().string())
    whole = pc.match_substring_regex(texts, _WHOLE).fill_null(False)
    if pc.any(whole).as_py():
        longer = pc.binary_join_element_wise(texts.filter(whole), ".0", "")
        texts = pc.replace_with_mask(texts, whole, longer)
    finite = pc.is_finite(column)
    return texts if pc.all(finite).as_py() else pc.if_else(finite, texts, None)


def _bytes_of(texts: Any) -> memoryview:
    """Returns the bytes of an Arrow array of texts, one behind the other."""
    _, offsets, data = texts.buffers()
    if data is None or not len(texts):
        return memoryview(b"")
    bounds = memoryview(offsets).cast("i")
    return memoryview(data)[bounds[texts.offset] : bounds[texts.offset + len(texts)]]


def _encode(value: object) -> str:
    return msgspec.json.encode(value, enc_hook=str).decode()


def _compute() -> Any:
    import pyarrow.compute  # pyright: ignore[reportMissingTypeStubs]

    return pyarrow.compute
