"""From a document's file or text to plain text or Markdown, with its pages and headings.

HTML becomes Markdown, so that headings, lists, tables and code are there for whatever cuts it.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from itertools import accumulate
from typing import Any

from mloc_dagster.errors import DataError

_PAGE_BREAK = "\n\n"
_LINE_END = re.compile(r"\r\n|\r|\n")
_FRONT_MATTER = re.compile(r"\A---[ \t]*\r?\n.*?^(?:---|\.\.\.)[ \t]*$", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True, slots=True)
class ParsedDocument:
    """A document as it is cut.

    Attributes:
        text: What offsets count in.
        markdown: Whether it is Markdown.
        page_starts: Where each page begins; none of documents without pages.
    """

    text: str
    markdown: bool = False
    page_starts: Sequence[int] = ()

    def page_at(self, place: int) -> int | None:
        """Returns the page of a place in the text, from 1."""
        return bisect_right(self.page_starts, place) or None


def parse_document(media_type: str, text: str, read: Callable[[], bytes]) -> ParsedDocument:
    """Returns the text of a document.

    Args:
        media_type: What it is; a text where nothing is said.
        text: What stands in it, where it is a text.
        read: Reads its file, where it is none.

    Raises:
        DataError: If it cannot be read.
    """
    match media_type:
        case "text/markdown":
            return ParsedDocument(text, markdown=True)
        case "text/html":
            return ParsedDocument(_markdown_of_html(text), markdown=True)
        case "application/pdf":
            return _parse_pdf(read())
        case _:
            return ParsedDocument(text)


def _markdown_of_html(text: str) -> str:
    import html_to_markdown

    options = html_to_markdown.ConversionOptions(extract_metadata=False, skip_images=True)
    try:
        converted: Any = html_to_markdown.convert(text, options)
    except html_to_markdown.ConversionError as error:
        raise DataError(f"the HTML cannot be read: {error}") from error
    return _clean(converted.content)


def _parse_pdf(content: bytes) -> ParsedDocument:
    try:
        pages = _pages_of_pdf(content)
    except DataError:
        raise
    except Exception as error:  # whatever a broken file makes a parser do
        raise DataError(f"the PDF cannot be read: {type(error).__name__}: {error}") from error
    if not any(map(str.strip, pages)):
        raise DataError(f"the PDF has no text on its {len(pages):,} pages: they may be pictures")
    lengths = (len(each) + len(_PAGE_BREAK) for each in pages[:-1])
    return ParsedDocument(
        _PAGE_BREAK.join(pages), page_starts=tuple(accumulate(lengths, initial=0))
    )


def _pages_of_pdf(content: bytes) -> list[str]:
    import pypdf

    reader = pypdf.PdfReader(BytesIO(content))
    if reader.is_encrypted and not reader.decrypt(""):
        raise DataError("the PDF needs a password")
    return [_clean(each.extract_text()) for each in reader.pages]


def _clean(text: str) -> str:
    """Returns a text without what cannot be stored: null and halves of characters."""
    return text.replace("\0", "").encode("utf-8", "replace").decode()


@dataclass(frozen=True, slots=True)
class Heading:
    """A heading of a Markdown text.

    Attributes:
        start: Where its line begins.
        level: 1 for the outermost.
        text: What it says, without marks.
    """

    start: int
    level: int
    text: str


class HeadingFinder:
    """Finds the headings of Markdown texts."""

    def __init__(self) -> None:
        from markdown_it import MarkdownIt

        # What is inside of paragraphs is not looked at, which takes most of the time.
        self._blocks = MarkdownIt("commonmark")
        self._blocks.core.ruler.enableOnly(["normalize", "block"])
        self._inline = MarkdownIt("commonmark")

    def find(self, text: str) -> list[Heading]:
        """Returns the headings of a text, in order; none of a block of metadata before it."""
        if "#" not in text and "\n=" not in text and "\n-" not in text:
            return []
        matter = _FRONT_MATTER.match(text)
        begins = 0 if matter is None else matter.end()
        starts = [begins, *(each.end() for each in _LINE_END.finditer(text, begins))]
        tokens = self._blocks.parse(text[begins:])
        return [
            Heading(
                starts[token.map[0]], int(token.tag[1:]), self._plain(tokens[place + 1].content)
            )
            for place, token in enumerate(tokens)
            if token.type == "heading_open" and token.map is not None
        ]

    def _plain(self, content: str) -> str:
        children = self._inline.parseInline(content)[0].children or []
        parts = (" " if "break" in each.type else each.content for each in children)
        return " ".join("".join(parts).split())


class HeadingPath:
    """Says which headings a place of a text stands below; places come in order.

    Args:
        headings: Those of the text, in order.
    """

    def __init__(self, headings: Sequence[Heading]) -> None:
        self._rest = list(reversed(headings))
        self._above: list[Heading] = []

    def at(self, place: int) -> list[str]:
        """Returns the headings above a place, or that begin there, the outermost first."""
        while self._rest and self._rest[-1].start <= place:
            found = self._rest.pop()
            while self._above and self._above[-1].level >= found.level:
                self._above.pop()
            self._above.append(found)
        return [each.text for each in self._above if each.text]
