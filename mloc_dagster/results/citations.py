"""Citations in answers: `[1]`, `[1][2]`, `[1, 2]` and `[1-3]` name passages by their numbers.

Also what an answer says that abstains. All of it is read from the text alone.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from mloc_dagster.results.rows import Citation, Passage

ABSTENTION = "No answer found."
"""What a model is asked to write where the passages do not hold the answer."""

_NUMBER = r"\d{1,9}(?:\s*[-\u2010-\u2015~]\s*\d{1,9})?"
_CITATION = re.compile(rf"[\[［【]\s*\^?({_NUMBER}(?:\s*[,;，；、]\s*\^?{_NUMBER})*)\s*[\]］】]")
_SPACED_CITATION = re.compile(rf"[ \t]?(?:{_CITATION.pattern})")
_RANGE = re.compile(r"(\d+)(?:\D+?(\d+))?")
_PART = re.compile(r"[,;，；、]")
_MOST_OF_A_RANGE = 1000
_MOST_SHOWN = 100

_PHRASES = frozenset(
    {
        "no answer found",
        "no answer was found",
        "no answer found in the passages",
        "未找到答案",
        "没有找到答案",
        "没找到答案",
        "找不到答案",
        "沒有找到答案",
        "文中没有答案",
    }
)
_LABEL = re.compile(r"^\W*(?:answer|答案|回答|答)\W*:\s*")
_FRAME = re.compile(r"^[\W_]+|[\W_]+$")
_SENTENCE_END = re.compile(r"[.!?。…\n]")  # after NFKC, which makes full-width signs plain


def cited_numbers(answer: str) -> list[int]:
    """Returns the numbers that an answer cites, each once, in the order in which they appear."""
    return list(dict.fromkeys(n for _, _, numbers in citation_spans(answer) for n in numbers))


def citation_spans(answer: str) -> list[tuple[int, int, list[int]]]:
    """Returns where an answer cites: start and end, and the numbers that stand there."""
    return [
        (citation.start(), citation.end(), _numbers(citation[1]))
        for citation in _CITATION.finditer(answer)
    ]


def _numbers(cited: str) -> list[int]:
    found: dict[int, None] = {}
    for part in _PART.split(cited):
        ends = _RANGE.search(part)
        if ends is None:
            continue
        first, last = int(ends[1]), int(ends[2] or ends[1])
        numbers = range(first, min(last, first + _MOST_OF_A_RANGE - 1) + 1)
        found |= dict.fromkeys(numbers or (first, last))
    return list(found)


def without_citations(answer: str) -> str:
    """Returns what an answer says, without its citations."""
    return _SPACED_CITATION.sub("", answer).strip()


def abstains(answer: str) -> bool:
    """Tells whether an answer says that the passages do not hold it.

    Its first sentence then is `ABSTENTION`, or the same in Chinese; upper case, punctuation,
    citations and a label such as `Answer:` do not matter.
    """
    text = unicodedata.normalize("NFKC", without_citations(answer)).casefold()
    sentences = (_bare(each) for each in _SENTENCE_END.split(_LABEL.sub("", text.lstrip())))
    return next((each for each in sentences if each), "") in _PHRASES


def _bare(sentence: str) -> str:
    """Returns a sentence without what frames it: quotes, asterisks, white space."""
    return _FRAME.sub("", " ".join(sentence.split()))


def check_citations(
    answer: str, passages: Sequence[Passage], *, required: bool
) -> tuple[list[Citation], str | None]:
    """Returns what an answer cites, and why that is not what it should be; None where it is.

    Args:
        answer: The answer.
        passages: What it was made of; the first has the number 1.
        required: Whether it has to cite something.
    """
    numbers = cited_numbers(answer)
    known = [n for n in numbers if 1 <= n <= len(passages)]
    citations = [_citation(n, passages[n - 1]) for n in known]
    if len(known) < len(numbers):
        unknown = "".join(f"[{n}]" for n in numbers if n not in known)
        there = "there is no passage" if not passages else f"the last passage is [{len(passages)}]"
        return citations, f"it cites {unknown[:_MOST_SHOWN]}, and {there}"
    if required and not numbers:
        return citations, "it cites no passage"
    return citations, None


def _citation(n: int, passage: Passage) -> Citation:
    return Citation(
        n, passage.id, passage.document, passage.start, passage.end, score=passage.score
    )
