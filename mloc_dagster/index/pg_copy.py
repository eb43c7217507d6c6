"""Chunks in PostgreSQL's binary COPY: vectors go from numpy to the server without a text between.

See "Binary Format" of COPY in PostgreSQL's manual, and `vector_recv` and `halfvec_recv` of pgvector
for theirs: the dimension and a zero, two bytes each, and the values, all in network order.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Sequence
from typing import Any

from mloc_dagster.index.chunk_columns import payload_json
from mloc_dagster.results import Passage

COPY_COLUMNS = "id, text, document, start_at, end_at, page, heading, payload, vector"
"""What `copy_bytes` writes, in that order."""

_HEAD = b"PGCOPY\n\xff\r\n\0" + struct.pack("!ii", 0, 0)
_END = struct.pack("!h", -1)
_NULL = struct.pack("!i", -1)
_FIELDS = struct.pack("!h", 9)
_TEXT_OID = 25
_JSONB_VERSION = b"\x01"


def copy_bytes(chunks: Sequence[Passage], vectors: Any, *, half: bool) -> io.BytesIO:
    """Returns what `COPY … FROM STDIN (FORMAT binary)` reads.

    Args:
        chunks: The chunks.
        vectors: A float32 array with a row for each.
        half: Whether the column is a `halfvec`.
    """
    values = vectors.astype(">f2" if half else ">f4")
    head = struct.pack("!hh", values.shape[1], 0)
    stream = io.BytesIO()
    write = stream.write
    write(_HEAD)
    for chunk, row in zip(chunks, values, strict=True):
        write(_FIELDS)
        for text in (chunk.id, chunk.text, chunk.document):
            write(_sized(_text(text)))
        write(_sized(struct.pack("!q", chunk.start)))
        write(_sized(struct.pack("!q", chunk.end)))
        write(_NULL if chunk.page is None else _sized(struct.pack("!i", chunk.page)))
        write(_sized(_texts(chunk.heading)))
        payload = payload_json(chunk)
        write(_NULL if payload is None else _sized(_JSONB_VERSION + _json(payload)))
        write(_sized(head + row.tobytes()))
    write(_END)
    stream.seek(0)
    return stream


def _sized(value: bytes) -> bytes:
    return struct.pack("!i", len(value)) + value


def _text(text: str) -> bytes:
    # PostgreSQL has no place for a zero byte; offsets stay right as one character replaces another.
    return text.replace("\0", "\ufffd").encode()


def _json(text: str) -> bytes:
    if "\\u0000" not in text:
        return text.encode()
    # An escaped backslash before it makes it a text of six characters.
    pieces = text.split("\\\\")
    return "\\\\".join(each.replace("\\u0000", "\ufffd") for each in pieces).encode()


def _texts(values: Sequence[str]) -> bytes:
    if not values:
        return struct.pack("!iii", 0, 0, _TEXT_OID)
    head = struct.pack("!iiiii", 1, 0, _TEXT_OID, len(values), 1)
    return head + b"".join(_sized(_text(each)) for each in values)
