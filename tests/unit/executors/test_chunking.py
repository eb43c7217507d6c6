"""Documents in chunks: where these begin and end, their names, the headings above them."""

from __future__ import annotations

import pytest
from hypothesis import given, settings, strategies as st

pytest.importorskip("semantic_text_splitter")
pytest.importorskip("markdown_it")

from mloc_dagster.errors import DataError
from mloc_dagster.executors.retrieval.chunking import Chunker
from mloc_dagster.executors.retrieval.parsing import ParsedDocument, parse_document
from mloc_dagster.schema import Chunking

CHARACTERS = Chunking(by="characters", size=40, overlap=10)
TOKENS = Chunking.model_validate(
    {"size": 12, "overlap": 3, "tokenizer": {"type": "builtin", "identifier": "tiny-chat"}}
)
PAGE = """\
# Owls

Owls hunt at night. They hear a mouse below the snow.

## Where they live

In old trees, and in barns that nobody has shut.

# Mice

Mice hide in the hay.
"""


def nothing() -> bytes:
    raise AssertionError("a text has no file")


@pytest.mark.parametrize("chunking", [CHARACTERS, TOKENS], ids=["characters", "tokens"])
@settings(max_examples=60, deadline=None)
@given(text=st.text(max_size=400), markdown=st.booleans())
def test_a_chunk_is_what_stands_at_its_place(
    chunking: Chunking, text: str, *, markdown: bool
) -> None:
    chunks = Chunker(chunking).cut("d", ParsedDocument(text, markdown=markdown))
    assert all(text[each.start : each.end] == each.text for each in chunks)
    assert [each.start for each in chunks] == sorted(each.start for each in chunks)
    assert len({each.id for each in chunks}) == len(chunks)
    # Nothing but blank space is left out.
    kept = {place for each in chunks for place in range(each.start, each.end)}
    assert not "".join(sign for place, sign in enumerate(text) if place not in kept).strip()


def test_no_chunk_is_longer_than_asked() -> None:
    for each in Chunker(CHARACTERS).cut("d", parse_document("text/markdown", PAGE, nothing)):
        assert len(each.text) <= CHARACTERS.size


def test_chunks_know_the_headings_above_them() -> None:
    chunks = Chunker(CHARACTERS).cut("d", parse_document("text/markdown", PAGE, nothing))

    def above(words: str) -> list[str]:
        return next(each.heading for each in chunks if words in each.text)

    assert above("hide in the hay") == ["Mice"]
    assert above("old trees") == ["Owls", "Where they live"]


def test_html_keeps_its_headings() -> None:
    text = (
        "<html><head><style>p {}</style></head><body><h1>Owls</h1><p>They hunt.</p></body></html>"
    )
    parsed = parse_document("text/html", text, nothing)
    (chunk,) = Chunker(CHARACTERS).cut("d", parsed)
    assert (chunk.heading, "They hunt." in chunk.text) == (["Owls"], True)


def test_the_same_text_cut_the_same_way_has_the_same_names() -> None:
    def names(document: str, text: str, chunking: Chunking = CHARACTERS) -> set[str]:
        parsed = parse_document("text/markdown", text, nothing)
        return {each.id for each in Chunker(chunking).cut(document, parsed)}

    first = names("d", PAGE)
    assert names("d", PAGE) == first
    assert not names("other", PAGE) & first
    assert not names("d", PAGE, CHARACTERS.model_copy(update={"overlap": 5})) & first
    changed = names("d", PAGE.replace("the hay", "the straw"))
    assert len(changed & first) == len(first) - 1


def test_a_file_that_is_no_pdf_is_an_error_that_says_so() -> None:
    with pytest.raises(DataError, match="PDF cannot be read"):
        parse_document("application/pdf", "", lambda: b"%PDF-1.4 broken")
