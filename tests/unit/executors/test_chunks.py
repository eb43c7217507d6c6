"""Chunks of documents: where they lie, what stands above them, and their ids."""

from __future__ import annotations

import subprocess
import sys
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st
from pydantic import ValidationError

from mloc_dagster.errors import DataError, TerminalError
from mloc_dagster.executors.retrieval.chunking import Chunker, load_tokenizer
from mloc_dagster.executors.retrieval.parsing import HeadingFinder, ParsedDocument, parse_document
from mloc_dagster.models import builtin_model_path
from mloc_dagster.results import Passage
from mloc_dagster.schema import Chunking, ChunkSpec, ModelSource
from tests.pdf_file import pdf_of

TINY = ModelSource(type="builtin", identifier="tiny-chat")

MARKDOWN = """---
title: none of the headings
---
# Guide

Intro.

## Install *now* `x`

```sh
# no heading
```

Setext
------

### Deep

Text below.

# End
"""


def parsed(media_type: str, text: str) -> ParsedDocument:
    return parse_document(media_type, text, lambda: b"")


def pdf(content: bytes) -> ParsedDocument:
    return parse_document("application/pdf", "", lambda: content)


@cache
def chunker(**block: Any) -> Chunker:
    return Chunker(Chunking(**block))


TEXTS = st.text(
    st.one_of(
        st.sampled_from("# \n\r\t`-=*.中文é😀\u2028\x0b"),
        st.characters(exclude_categories=["Cs"], exclude_characters="\0"),
    ),
    max_size=400,
)


@settings(deadline=None, max_examples=150)
@given(text=TEXTS, markdown=st.booleans(), tokens=st.booleans(), overlap=st.sampled_from([0, 5]))
def test_a_chunk_is_what_stands_between_its_offsets(
    text: str, markdown: bool, tokens: bool, overlap: int
) -> None:
    counted = {"by": "tokens", "tokenizer": TINY} if tokens else {"by": "characters"}
    cutter = chunker(**counted, size=20, overlap=overlap)
    chunks = cutter.cut("d", ParsedDocument(text, markdown))
    assert all(text[each.start : each.end] == each.text for each in chunks)
    covered = {place for each in chunks for place in range(each.start, each.end)}
    assert not "".join(each for place, each in enumerate(text) if place not in covered).strip()
    assert len({each.id for each in chunks}) == len(chunks)
    if not tokens:
        assert all(len(each.text) <= 20 for each in chunks)


def test_headings_stand_above_chunks() -> None:
    found = HeadingFinder().find(MARKDOWN)
    assert [(each.level, each.text) for each in found] == [
        (1, "Guide"),
        (2, "Install now x"),
        (2, "Setext"),
        (3, "Deep"),
        (1, "End"),
    ]
    chunks = chunker(by="characters", size=30, overlap=0).cut(
        "d", parsed("text/markdown", MARKDOWN)
    )
    paths = {each.text: each.heading for each in chunks}
    deep = next(path for text, path in paths.items() if "Text below" in text)
    assert deep == ["Guide", "Setext", "Deep"]


def test_html_becomes_markdown_with_its_headings() -> None:
    page = (
        "<html><head><title>T</title><script>var x = '<h1>no</h1>'</script></head><body>"
        "<h1>Guide</h1><p>One &lt;b&gt;.</p><h2>Install</h2><ul><li>first</li></ul>"
        "<pre><code># no heading</code></pre></body></html>"
    )
    document = parsed("text/html", page)
    assert [each.text for each in HeadingFinder().find(document.text)] == ["Guide", "Install"]
    assert "- first" in document.text
    assert "var x" not in document.text
    assert "<p>" not in document.text


def test_chunks_of_a_pdf_have_pages() -> None:
    document = pdf(pdf_of("First page.\nMore.", "Second page.", "Third page."))
    chunks = chunker(by="characters", size=20, overlap=0).cut("p", document)
    assert [(each.page, each.text.split()[0]) for each in chunks] == [
        (1, "First"),
        (2, "Second"),
        (3, "Third"),
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no pdf at all", "the PDF cannot be read"),
        (pdf_of("x" * 40)[:200], "the PDF cannot be read"),
        (pdf_of("secret", password="p"), "the PDF needs a password"),
        (pdf_of("", ""), "the PDF has no text on its 2 pages"),
    ],
)
def test_a_pdf_that_cannot_be_read(content: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        pdf(content)


def test_the_same_chunk_has_the_same_id_in_every_process() -> None:
    code = (
        "from mloc_dagster.executors.retrieval.chunking import Chunker\n"
        "from mloc_dagster.executors.retrieval.parsing import ParsedDocument\n"
        "from mloc_dagster.schema import Chunking\n"
        "c = Chunker(Chunking(by='characters', size=20, overlap=5))\n"
        "print([e.id for e in c.cut('d', ParsedDocument('one two three four five six'), {'a': 1})])"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert ran.stdout.strip() == str([each.id for each in cut()])


def cut(document: str = "d", payload: dict[str, Any] | None = None, **block: Any) -> list[Passage]:
    given = {"by": "characters", "size": 20, "overlap": 5, **block}
    text = ParsedDocument("one two three four five six")
    return chunker(**given).cut(document, text, {"a": 1} if payload is None else payload)


@pytest.mark.parametrize(
    "other", [{"document": "e"}, {"size": 21}, {"payload": {"a": 2}}, {"respect": "markdown"}]
)
def test_what_a_chunk_is_decides_on_its_id(other: dict[str, Any]) -> None:
    assert {each.id for each in cut()}.isdisjoint(each.id for each in cut(**other))


def test_tokens_are_those_of_the_model() -> None:
    tokenizer = load_tokenizer(TINY)
    text = "An owl hunts at night, and a mouse hides below the leaves of the old oak. " * 20
    chunks = chunker(tokenizer=TINY, size=30, overlap=0).cut("d", ParsedDocument(text))
    counts = [len(tokenizer.encode(each.text, add_special_tokens=False)) for each in chunks]
    assert max(counts) <= 30
    assert max(counts) > 25


def test_a_tokenizer_needs_no_weights(tmp_path: Any) -> None:
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / name).write_bytes((builtin_model_path("tiny-chat") / name).read_bytes())
    local = load_tokenizer(ModelSource(type="local", identifier=str(tmp_path)))
    assert local.to_str() == load_tokenizer(TINY).to_str()
    with pytest.raises(TerminalError, match="does not exist"):
        load_tokenizer(ModelSource(type="local", identifier=str(tmp_path / "gone")))


@pytest.mark.parametrize(
    "tokenizer",
    [None, {"type": "openai", "identifier": "m", "base_url": "http://127.0.0.1:9/v1"}],
)
def test_tokens_need_a_tokenizer(tokenizer: Any) -> None:
    block = {"taskType": "chunk", "data": {"url": "docs/*.md"}, "chunk": {"tokenizer": tokenizer}}
    with pytest.raises(ValidationError, match="or give by: characters"):
        ChunkSpec.model_validate(block)
