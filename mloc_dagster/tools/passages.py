"""The tool `rag`: passages of an index, as text that an answer can cite."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from mloc_dagster.errors import MlocError
from mloc_dagster.schema import RagTool
from mloc_dagster.tools.failure import ToolFailure
from mloc_dagster.tools.threads import in_thread


class FoundPassage(Protocol):
    """What the tool tells of a passage."""

    @property
    def document(self) -> str:
        """Which document it stands in."""
        ...

    @property
    def heading(self) -> Sequence[str] | None:
        """The headings above it."""
        ...

    @property
    def score(self) -> float | None:
        """By what it stands where it does."""
        ...

    @property
    def text(self) -> str:
        """Its text."""
        ...


PassageSearch = Callable[[RagTool, str], Sequence[FoundPassage]]
"""Searches as a tool says; what searches indexes stands above what agents call."""


def no_search(tool: RagTool, query: str) -> Sequence[FoundPassage]:
    """Refuses: where tools are opened like this, no index can be searched.

    Raises:
        ToolFailure: Always.
    """
    raise ToolFailure(f"the index {tool.index!r} cannot be searched here")


def rag_function(tool: RagTool, search: PassageSearch) -> Callable[[str], Awaitable[str]]:
    """Returns the tool.

    Args:
        tool: Which index, and how it is searched.
        search: Searches it.
    """

    async def rag(query: str) -> str:
        try:
            found = await in_thread(functools.partial(search, tool, query))
        except MlocError as error:
            raise ToolFailure(str(error)) from error
        return _listed(found) or "nothing was found"

    rag.__doc__ = (
        f"Searches the documents of {tool.index!r} and returns the passages that fit best, each "
        "with its document and headings, numbered so that they can be cited.\n\n"
        "Args:\n    query: What to look for, in words of the documents."
    )
    return rag


def _listed(found: Sequence[FoundPassage]) -> str:
    return "\n\n".join(
        f"[{number}] {_title(each)}\n{each.text.strip()}" for number, each in enumerate(found, 1)
    )


def _title(passage: FoundPassage) -> str:
    place = " › ".join([passage.document, *(passage.heading or ())])
    return place if passage.score is None else f"{place} (score {passage.score:.4g})"
