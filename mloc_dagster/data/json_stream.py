"""Reading a JSON array row by row, without holding the whole document.

`ijson` reads the same on its C backend in less than half the time. It refuses `NaN` and numbers
beyond 64 bits, which Python's own `json` writes, replaces half a surrogate pair, and knows no line
of a row or of what is broken. Its Python backend takes ten times as long.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Generator, Iterator
from io import BufferedReader
from typing import BinaryIO, cast

from mloc_dagster.data.formats import JsonLines, Place, Row, RowError

_BLOCK_BYTES = 1 << 18
_SPACE = re.compile(r"[ \t\r\n]*")
_SHORT_TOKEN = 16  # longest literal or escape that the end of a block may have cut


class Json:
    """An array of objects, or an object that holds that array under `data`.

    A file of several objects, one a line, is read as JSON lines; a single object is one row.
    Memory is bounded by one row and what an object holds before its `data`.
    """

    def columns(self, file: BinaryIO) -> list[str]:
        """Returns the keys of the first row."""
        if _is_lines(file):
            return JsonLines().columns(file)
        return list(next(_Rows(file).rows(), (0, cast("dict[str, object]", {})))[1])

    def types(self, file: BinaryIO) -> None:
        """JSON has none that hold for all rows."""

    def rows(
        self, file: BinaryIO, columns: Collection[str] | None = None
    ) -> Generator[tuple[Place, Row]]:
        """Yields each row."""
        yield from JsonLines().rows(file, columns) if _is_lines(file) else _Rows(file).rows()

    def count(self, file: BinaryIO) -> int:
        """Counts rows; the whole file is parsed."""
        if _is_lines(file):
            return JsonLines().count(file)
        return sum(1 for _ in _Rows(file).rows())


def _is_lines(file: BinaryIO) -> bool:
    """Whether the first line is an object of its own and others follow."""
    # Peeking and not seeking: a compressed stream only goes forward.
    start = cast(BufferedReader, file).peek(_BLOCK_BYTES)
    line, end, rest = start.removeprefix(b"\xef\xbb\xbf").lstrip().partition(b"\n")
    if not (line.startswith(b"{") and end and rest.strip()):
        return False
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


class _Rows:
    """A parser that holds one block, or one value where that is longer."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._text = ""
        self._at = 0
        self._line = 1
        self._block = _BLOCK_BYTES
        self._tail = b""
        self._decode = json.JSONDecoder().raw_decode

    def rows(self) -> Iterator[tuple[Place, dict[str, object]]]:
        opening = self._peek().removeprefix("\ufeff")
        if self._text.startswith("\ufeff"):
            self._at += 1
            opening = self._peek()
        if opening == "[":
            yield from self._array()
        elif opening == "{":
            yield from self._object()
        elif opening:
            raise RowError(self._line, "expected a JSON array or object")
        else:
            return
        if self._peek():
            raise RowError(self._line, "text after the end of the JSON document")

    def _array(self) -> Iterator[tuple[Place, dict[str, object]]]:
        self._take("[")
        if self._peek() == "]":
            self._take("]")
            return
        while True:
            self._peek()
            place = self._line
            row = self._value()
            if not isinstance(row, dict):
                raise RowError(place, f"expected a JSON object, got {type(row).__name__}")
            yield place, cast("dict[str, object]", row)
            if self._peek() == "]":
                self._take("]")
                return
            self._take(",")

    def _object(self) -> Iterator[tuple[Place, dict[str, object]]]:
        place = self._line
        row: dict[str, object] = {}
        streamed = False
        self._take("{")
        while self._peek() != "}":
            if row or streamed:
                self._take(",")
                self._peek()
            key = str(self._value())
            self._peek()
            self._take(":")
            if key == "data" and self._peek() == "[":
                streamed = True
                yield from self._array()
            else:
                self._peek()
                row[key] = self._value()
        self._take("}")
        if not streamed:
            yield place, row

    def _peek(self) -> str:
        """Skips white space; returns the next character, or "" at the end."""
        while True:
            match = _SPACE.match(self._text, self._at)
            end = self._at if match is None else match.end()
            self._line += self._text.count("\n", self._at, end)
            self._at = end
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._more():
                return ""

    def _take(self, expected: str) -> None:
        found = self._peek()
        if found != expected:
            shown = repr(found) if found else "the end of the file"
            raise RowError(self._line, f"broken JSON: expected {expected!r}, got {shown}")
        self._at += 1

    def _value(self) -> object:
        while True:
            try:
                value, end = self._decode(self._text, self._at)
            except json.JSONDecodeError as error:
                if not self._cut(error) or not self._more():
                    line = self._line + self._text.count("\n", self._at, error.pos)
                    raise RowError(line, f"broken JSON: {error.msg}") from None
                continue
            # A number at the end of the block may go on in the next.
            if end == len(self._text) and self._more():
                continue
            self._line += self._text.count("\n", self._at, end)
            self._at = end
            self._block = _BLOCK_BYTES
            return value

    def _cut(self, error: json.JSONDecodeError) -> bool:
        """Whether the error may come from the end of the block and not from the document."""
        near_end = error.pos >= len(self._text) - _SHORT_TOKEN
        return near_end or error.msg.startswith("Unterminated string")

    def _more(self) -> bool:
        block = self._file.read(self._block)
        if not block:
            return False
        # Doubling keeps a long value linear: each retry parses it from its start.
        self._block *= 2
        text, self._tail = _decode_utf8(self._tail + block, self._line)
        self._text = self._text[self._at :] + text
        self._at = 0
        return True


def _decode_utf8(block: bytes, line: int) -> tuple[str, bytes]:
    """Decodes all but a character that the end of the block has cut."""
    try:
        return block.decode(), b""
    except UnicodeDecodeError as error:
        if error.start >= len(block) - 3 and error.reason == "unexpected end of data":
            return block[: error.start].decode(), block[error.start :]
        place = line + block.count(b"\n", 0, error.start)
        raise RowError(place, f"not UTF-8 ({error.reason})") from None
