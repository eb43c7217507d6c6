"""Citations are read, and checked against the passages that an answer was made of."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from mloc_dagster.results import ABSTENTION, Passage, abstains, check_citations
from mloc_dagster.results.citations import cited_numbers, without_citations

PASSAGES = [
    Passage("c1", "Paris is in France.", "geo.md", 0, 19, score=0.9),
    Passage("c2", "Lyon is as well.", "geo.md", 20, 36),
]


@pytest.mark.parametrize(
    ("answer", "numbers"),
    [
        ("Paris [1].", [1]),
        ("Paris [1][2].", [1, 2]),
        ("Paris [2, 1]; Lyon [2].", [2, 1]),
        ("Paris [1-3].", [1, 2, 3]),
        ("Paris [1, 3–4].", [1, 3, 4]),
        ("巴黎【1】，里昂［2、3］。", [1, 2, 3]),
        ("Paris [^1].", [1]),
        ("Paris [ 1 ; 2 ].", [1, 2]),
        ("Backwards [3-1].", [3, 1]),
        ("[0]", [0]),
        ("Nothing [a], [1a], [1.5], (1), [], 1].", []),
    ],
)
def test_citations_are_read(answer: str, numbers: list[int]) -> None:
    assert cited_numbers(answer) == numbers


@given(st.text(alphabet="[]1234567890,-– ab【】^;"))
def test_what_is_no_citation_stays_and_what_is_one_goes(answer: str) -> None:
    left = without_citations(answer)
    assert len(cited_numbers(answer)) <= 1000 * len(answer)
    assert ("[" in answer or "【" in answer) or left == answer.strip()


@given(st.lists(st.integers(0, 50), min_size=1, max_size=8))
def test_every_form_names_the_same_passages(numbers: list[int]) -> None:
    each_once = list(dict.fromkeys(numbers))
    listed = ", ".join(map(str, numbers))
    assert cited_numbers(f"So it is [{listed}].") == each_once
    assert cited_numbers("So it is " + "".join(f"[{n}]" for n in numbers)) == each_once
    assert without_citations(f"So it is [{listed}].") == "So it is."


@given(
    st.text(max_size=60)
    | st.lists(st.integers(0, 9)).map(lambda ns: "".join(f"[{n}]" for n in ns)),
    st.integers(0, 4),
    st.booleans(),
)
def test_no_citation_names_what_is_not_there(answer: str, passages: int, required: bool) -> None:
    given_ = [Passage(f"c{n}") for n in range(1, passages + 1)]
    citations, problem = check_citations(answer, given_, required=required)
    assert [each.chunk_id for each in citations] == [f"c{each.n}" for each in citations]
    cited = cited_numbers(answer)
    assert (problem is None) == (len(citations) == len(cited) and bool(cited or not required))


def test_a_citation_says_where_its_passage_stands() -> None:
    (citation,), problem = check_citations("In France [1].", PASSAGES, required=True)
    assert problem is None
    assert (citation.n, citation.chunk_id, citation.document) == (1, "c1", "geo.md")
    assert (citation.start, citation.end, citation.score) == (0, 19, 0.9)


def test_a_citation_of_nothing_is_told_and_the_others_are_kept() -> None:
    citations, problem = check_citations("Here [1] and there [2, 7].", PASSAGES, required=False)
    assert [each.n for each in citations] == [1, 2]
    assert problem == "it cites [7], and the last passage is [2]"
    assert check_citations("Here [1].", [], required=False)[1] == (
        "it cites [1], and there is no passage"
    )
    assert check_citations("Here.", PASSAGES, required=True)[1] == "it cites no passage"
    assert check_citations("Here.", PASSAGES, required=False) == ([], None)


@pytest.mark.parametrize(
    "answer",
    [
        ABSTENTION,
        "no answer found",
        " **No answer found** ",
        '"No answer found."',
        "No answer found [1].",
        "Answer: No answer found!",
        "No answer found. The passages are about Paris only.",
        "No answer found\n\nThe passages…",
        "未找到答案。",
        "答案：没有找到答案【1】。",
        "NO  ANSWER FOUND。",
    ],
)
def test_an_abstention_is_recognised(answer: str) -> None:
    assert abstains(answer)


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "Paris [1].",
        "No answer found in 1905 was right.",
        "He found no answer.",
        "没有",
        "…",
    ],
)
def test_an_answer_is_no_abstention(answer: str) -> None:
    assert not abstains(answer)
