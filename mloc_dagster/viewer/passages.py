"""What was found for a row, and which of it the answer cites: the answer beside its passages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import msgspec

from mloc_dagster.results import OutputRow, Passage, citation_spans, ids_of, is_relevant


class PassageView(msgspec.Struct):
    """A passage, or a chunk of a document.

    Attributes:
        n: Its place, from 1: the number that an answer cites.
        document: The document's id.
        place: Where it stands there.
        text: What stands there.
        headings: The headings above it, the outermost first.
        scores: By name, the one that it stands by first.
        relevant: Whether it should be found; None where nothing says so.
        cited: Whether the answer names it.
    """

    n: int
    document: str
    place: str
    text: str
    headings: list[str] = []
    scores: dict[str, float] = {}
    relevant: bool | None = None
    cited: bool = False


class AnswerPart(msgspec.Struct):
    """A piece of an answer: text, or the numbers of the passages that it cites at this place."""

    text: str = ""
    cites: list[int] = []


class FoundView(msgspec.Struct):
    """What a row of a retrieval task has beside its output.

    Attributes:
        passages: What was found, the best first; what a document was cut into.
        chunks: Whether they are a document's chunks.
        missed: Ids of what should have been found, and was not.
        answer: The answer in parts; empty where none can cite.
        abstained: Whether the model says that the passages do not hold the answer.
        citation_error: Why the citations are not what they should be.
        left_out: Passages, the last ones, that there was no room for.
    """

    passages: list[PassageView]
    chunks: bool = False
    missed: list[str] = []
    answer: list[AnswerPart] = []
    abstained: bool = False
    citation_error: str = ""
    left_out: int = 0


def found_view(
    row: Mapping[str, Any], computed: OutputRow | None, relevant: str
) -> FoundView | None:
    """Returns what was found for a row; None if its task searches for nothing.

    Args:
        row: Its cells.
        computed: The row of the part files, where it is there: of a task that runs the cells do
            not hold everything.
        relevant: The column with ids of what should be found, as in `evaluation.relevant_column`;
            empty without one.
    """
    known = msgspec.structs.asdict(computed) if computed is not None else row
    chunks, retrieved = _passages(known.get("chunks")), _passages(known.get("retrieved"))
    if chunks is not None:
        return FoundView([_view(n, each) for n, each in enumerate(chunks, 1)], chunks=True)
    if retrieved is None:
        return None
    wanted = ids_of(_value(row, relevant.split("."))) if relevant else frozenset[str]()
    output = str(known.get("output") or "")
    cites = known.get("citations") is not None
    cited = (
        {n for _, _, numbers in citation_spans(output) for n in numbers} if cites else set[int]()
    )
    views = [_view(n, each) for n, each in enumerate(retrieved, 1)]
    for view, passage in zip(views, retrieved, strict=True):
        view.relevant = is_relevant(passage, wanted) if wanted else None
        view.cited = view.n in cited
    return FoundView(
        views,
        missed=sorted(
            wanted - {each.id for each in retrieved} - {each.document for each in retrieved}
        ),
        answer=answer_parts(output) if cites else [],
        abstained=bool(known.get("abstained")),
        citation_error=str(known.get("citation_error") or ""),
        left_out=int(known.get("left_out") or 0),
    )


def answer_parts(answer: str) -> list[AnswerPart]:
    """Cuts an answer where it cites; together the parts hold all of its text but the citations."""
    parts: list[AnswerPart] = []
    end = 0
    for start, stop, numbers in citation_spans(answer):
        if start > end:
            parts.append(AnswerPart(answer[end:start]))
        parts.append(AnswerPart(cites=numbers))
        end = stop
    return [*parts, AnswerPart(answer[end:])] if answer[end:] else parts


def _passages(given: object) -> list[Passage] | None:
    """Returns passages of a part file, or of Parquet, where their payload is a text."""
    if not isinstance(given, list):
        return None
    return [
        each
        if isinstance(each, Passage)
        else msgspec.convert({**cast("dict[str, object]", each), "payload": None}, Passage)
        for each in cast("list[object]", given)
    ]


def _view(n: int, passage: Passage) -> PassageView:
    characters = f"characters {passage.start:,}–{passage.end:,}" if passage.end else ""
    page = f"page {passage.page}" if passage.page is not None else ""
    scores = {
        name: score
        for name in ("score", "rerank", "dense", "keyword")
        if (score := getattr(passage, name)) is not None
    }
    if list(scores.values()).count(passage.score) > 1:  # another one says by what it stands
        del scores["score"]
    return PassageView(
        n,
        passage.document or passage.id,
        " · ".join(filter(None, (page, characters))),
        passage.text,
        headings=passage.heading,
        scores=scores,
    )


def _value(row: Mapping[str, Any], place: Sequence[str]) -> object:
    value: object = row
    for step in place:
        value = (
            cast("Mapping[str, object]", value).get(step) if isinstance(value, Mapping) else None
        )
    return value
