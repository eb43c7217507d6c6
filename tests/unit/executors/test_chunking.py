"""Documents in chunks: where these begin and end, their names, the headings above them."""

from __future__ import annotations

import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st
from pydantic import ValidationError

pytest.importorskip("semantic_text_splitter")
pytest.importorskip("markdown_it")

from mloc_dagster.data import spool_input
from mloc_dagster.errors import DataError, TaskCancelled, TerminalError
from mloc_dagster.executors import ModelCache, run_shard
from mloc_dagster.executors.retrieval.chunking import Chunker, load_tokenizer
from mloc_dagster.executors.retrieval.parsing import HeadingFinder, ParsedDocument, parse_document
from mloc_dagster.models import builtin_model_path
from mloc_dagster.results import OutputRow, open_store, read_rows
from mloc_dagster.schema import Chunking, ChunkSpec, ModelSource
from tests.pdf_file import pdf_of

TINY = ModelSource(type="builtin", identifier="tiny-chat")

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


def test_headings_of_all_forms_and_none_of_metadata_or_code() -> None:
    text = "---\ntitle: x\n---\n# A *b* `c`\n\n```sh\n# no\n```\n\nSetext\n------\n\n### Deep #\n"
    found = [(each.level, each.text) for each in HeadingFinder().find(text)]
    assert found == [(1, "A b c"), (2, "Setext"), (3, "Deep")]


def test_chunks_of_a_pdf_have_pages() -> None:
    content = pdf_of("First page.\nMore.", "Second page.", "Third page.")
    parsed = parse_document("application/pdf", "", lambda: content)
    chunks = Chunker(Chunking(by="characters", size=20, overlap=0)).cut("p", parsed)
    found = [(each.page, each.text.split()[0]) for each in chunks]
    assert found == [(1, "First"), (2, "Second"), (3, "Third")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (pdf_of("secret", password="p"), "the PDF needs a password"),
        (pdf_of("", ""), "the PDF has no text on its 2 pages"),
    ],
    ids=["password", "pictures"],
)
def test_a_pdf_without_a_text_that_can_be_read(content: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        parse_document("application/pdf", "", lambda: content)


def test_names_are_the_same_in_every_process() -> None:
    code = (
        "from mloc_dagster.executors.retrieval.chunking import Chunker\n"
        "from mloc_dagster.executors.retrieval.parsing import ParsedDocument\n"
        "from mloc_dagster.schema import Chunking\n"
        "c = Chunker(Chunking(by='characters', size=40, overlap=10))\n"
        "print([e.id for e in c.cut('d', ParsedDocument('one two ' * 20), {'b': 1, 'a': 2})])"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    here = Chunker(CHARACTERS).cut("d", ParsedDocument("one two " * 20), {"a": 2, "b": 1})
    assert ran.stdout.strip() == str([each.id for each in here])


def test_a_tokenizer_needs_no_weights(tmp_path: Path) -> None:
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / name).write_bytes((builtin_model_path("tiny-chat") / name).read_bytes())
    local = load_tokenizer(ModelSource(type="local", identifier=str(tmp_path)))
    assert local.to_str() == load_tokenizer(TINY).to_str()
    with pytest.raises(TerminalError, match="does not exist"):
        load_tokenizer(ModelSource(type="local", identifier=str(tmp_path / "gone")))


@pytest.mark.parametrize(
    "tokenizer", [None, {"type": "openai", "identifier": "m", "base_url": "http://127.0.0.1:9/v1"}]
)
def test_tokens_need_a_tokenizer(tokenizer: Any) -> None:
    block = {"taskType": "chunk", "data": {"url": "docs/*.md"}, "chunk": {"tokenizer": tokenizer}}
    with pytest.raises(ValidationError, match="or give by: characters"):
        ChunkSpec.model_validate(block)


def rows_in(folder: Path, shards: int, *, stop_after: int | None = None) -> list[OutputRow]:
    """Runs a task over a folder in shards, the first of which may be stopped and tried again."""
    block = {"by": "characters", "size": 20, "overlap": 5}
    data = {"url": f"{folder}/*"}
    spec = ChunkSpec.model_validate({"taskType": "chunk", "data": data, "chunk": block})
    task = open_store(f"memory://{uuid.uuid4().hex}").task("t")
    plan = spool_input("t", spec.data, task, shards, 1, {})
    cache = ModelCache(1)
    for shard in plan.shards:
        done: list[OutputRow] = []
        if stop_after is not None and shard.index == 0:
            with pytest.raises(TaskCancelled):
                run_shard(
                    *(task, "t", spec, plan, shard),
                    attempt=1,
                    cache=cache,
                    cancelled=lambda: len(done) >= stop_after,  # noqa: B023
                    on_rows=done.append,
                )
        run_shard(*(task, "t", spec, plan, shard), attempt=2, cache=cache, cancelled=lambda: False)
    return list(read_rows(task))


def test_chunks_are_the_same_in_any_number_of_shards_and_after_a_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mloc_dagster.executors.retrieval import chunks

    monkeypatch.setattr(chunks, "SECONDS_PER_LOOK", -1)
    for number in range(6):
        (tmp_path / f"{number}.md").write_text(f"# Page {number}\n\nOwls hunt at night.\n")
    (tmp_path / "7.pdf").write_bytes(b"no pdf")
    (tmp_path / "8.pdf").write_bytes(pdf_of("One page."))

    def said(rows: list[OutputRow]) -> list[Any]:
        return [(each.custom_id, each.output, each.error, each.chunks) for each in rows]

    whole = said(rows_in(tmp_path, 1))
    assert [each[2] is None for each in whole] == [True] * 6 + [False, True]
    assert said(rows_in(tmp_path, 3)) == whole
    assert said(rows_in(tmp_path, 2, stop_after=2)) == whole
