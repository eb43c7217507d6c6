"""What Dagster shows of an evaluation: the worst rows, and where relevant passages stand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import dagster as dg

from mloc_dagster.ops.charts import INLINE_CHARACTERS
from mloc_dagster.ops.metadata import responses_metadata
from mloc_dagster.results import OutputRow, Passage, open_store, read_summary
from mloc_dagster.schema import RowEvaluation
from tests.viewed_task import make_task

MARKUP = "![x](http://a/b.png) <img src=x> `a|b` [link](javascript:x)\n# head " + "long " * 90
TEN = 10


def shown(
    folder: Path, inputs: Sequence[Mapping[str, object]], rows: Sequence[OutputRow], **block: Any
) -> dict[str, dg.MetadataValue]:
    evaluation = RowEvaluation.model_validate(block)
    made = make_task(open_store(str(folder)), "t", inputs, rows, evaluation=evaluation)
    return responses_metadata(read_summary(made), made.url)


def markdown(metadata: Mapping[str, dg.MetadataValue], name: str) -> str:
    value = metadata[name]
    assert isinstance(value, dg.MarkdownMetadataValue)
    return value.md_str or ""


def test_of_a_search_the_worst_rows_name_what_was_expected_and_found(tmp_path: Path) -> None:
    found = [Passage(f"c{n}", "text", document) for n, document in enumerate(("b.md", "a.md"))]
    inputs = [
        {"question": MARKUP, "should": ["a.md"]},
        *({"question": "q", "should": ["c.md"]},) * 11,
    ]
    rows = [OutputRow(n, str(each["question"]), retrieved=found) for n, each in enumerate(inputs)]
    metadata = shown(tmp_path, inputs, rows, relevant_column="should", metrics=["recall@1", "mrr"])
    table = markdown(metadata, "evaluation/worst_rows")
    assert len(table) < INLINE_CHARACTERS
    head, _, *lines = table.splitlines()
    assert head == "| index | recall@1 | mrr | prompt | expected | found |"
    assert len(lines) == TEN
    assert lines[0] == "| 1 | 0 | 0 | q | c.md | b.md, a.md |"
    assert "First relevant at 1: 0 of 12 rows; none: 11" in markdown(metadata, "evaluation/ranks")
    assert "recall@k: 0 to 0.08333" in markdown(metadata, "evaluation/recall")
    assert metadata["evaluation/mrr"].value == round(1 / 24, 9)


def test_of_answers_the_worst_rows_name_the_right_answer_and_the_output(tmp_path: Path) -> None:
    inputs = [{"question": f"{n}{MARKUP}", "answer": MARKUP} for n in range(30)]
    rows = [OutputRow(n, str(each["question"]), "wrong") for n, each in enumerate(inputs)]
    metadata = shown(tmp_path, inputs, rows, reference="answer", metrics=["exact_match"])
    table = markdown(metadata, "evaluation/worst_rows")
    assert len(table) < INLINE_CHARACTERS
    lines = table.splitlines()[2:]
    assert len(lines) == TEN
    assert lines[0].endswith("| wrong |")
    assert lines[0].startswith(r"| 0 | 0 | 0!\[x](http")
    assert {line.replace("\\|", "").count("|") for line in lines} == {6}
    assert "evaluation/ranks" not in metadata


def test_a_row_is_no_markup_in_the_preview(tmp_path: Path) -> None:
    inputs = [{"question": MARKUP, "answer": "a"}]
    metadata = shown(
        tmp_path, inputs, [OutputRow(0, MARKUP, "a")], reference="answer", metrics=["exact_match"]
    )
    preview = markdown(metadata, "preview")
    assert r"!\[x](http://a/b.png) \<img src=x> \`a\|b\` \[link](javascript:x) # head" in preview
    assert "evaluation/worst_rows" not in metadata, "all answers are right"
