from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
from pydantic import TypeAdapter

from mloc_dagster.compile import parse_expression
from mloc_dagster.data.rows import lookup_reference, open_rows, upstream_rows
from mloc_dagster.data.spool import spool_input
from mloc_dagster.errors import DataError, UnknownNameError
from mloc_dagster.planning import cut_shards
from mloc_dagster.results import (
    UPSTREAM_FAULT,
    Folder,
    FunctionCall,
    Message,
    OutputRow,
    Prompt,
    ShardWriter,
    SourceRow,
    ToolCall,
    open_store,
)
from mloc_dagster.schema import DatasetData, GraphTemplateData, InferenceData, UpstreamData

CHAT = [Message("system", "s"), Message("user", "first"), Message("assistant", "a")]
CHAT += [Message("user", "last")]


def finish(folder: Folder, rows: list[OutputRow]) -> Folder:
    for shard in cut_shards("t", len(rows), 2):
        with ShardWriter(folder, shard, 1, flush_rows=2, flush_interval_s=60) as writer:
            for row in rows[shard.start : shard.stop]:
                writer.write(row)
    summary = {"ok": True, "model": "tiny", "usage": {"total_tokens": 12}}
    folder.write_bytes("summary.json", json.dumps(summary).encode())
    return folder


@pytest.fixture
def folders(tmp_path: Path) -> Mapping[str, Folder]:
    """Nodes `a` (three rows, the second failed), `b` (three), `short` (two), `train` (a model)."""
    store = open_store(str(tmp_path))
    train = store.task("train")
    result = {"final_model_path": "models/x", "metrics": {"loss": 0.5}, "ok": True}
    train.write_bytes("responses.json", json.dumps({"task_id": "t", "result": result}).encode())
    return {
        "a": finish(
            store.task("a"),
            [
                OutputRow(0, "p0", "A0", completion_tokens=7),
                OutputRow(1, "p1", error="too long", finish_reason="error"),
                OutputRow(2, CHAT, "A2 {output}"),
            ],
        ),
        "b": finish(store.task("b"), [OutputRow(n, f"p{n}", f"B{n}") for n in range(3)]),
        "short": finish(store.task("short"), [OutputRow(n, "p", "S") for n in range(2)]),
        "train": train,
    }


def upstream(folders: Mapping[str, Folder], **block: object) -> list[Prompt]:
    data = UpstreamData.model_validate({"type": "upstream", **block})
    return [row.prompt for row in open_rows(data, folders)[1]]


def graph(folders: Mapping[str, Folder], **template: object) -> list[Prompt]:
    data = GraphTemplateData.model_validate({"type": "graph_template", "template": template})
    return [row.prompt for row in open_rows(data, folders)[1]]


def columns(**expressions: str) -> list[dict[str, str]]:
    return [{"label": label, "expr": expression} for label, expression in expressions.items()]


def test_upstream_rows_keep_their_places(folders: Mapping[str, Folder]) -> None:
    assert upstream(folders, node="a") == ["p0\n\nA0", "p1\n\n", "last\n\nA2 {output}"]
    assert upstream(folders, node="a", on_upstream_error="empty")[1] == "p1\n\n"
    assert upstream(folders, node="b", text="{{{output}}}")[0] == "{B0}"


BLOCKS = {
    "upstream": {"type": "upstream", "node": "a"},
    "graph": {
        "type": "graph_template",
        "template": {"text": "{x}", "columns": [{"label": "x", "expr": "a.result.items[*]"}]},
    },
}


@pytest.mark.parametrize("kind", BLOCKS)
def test_a_row_that_failed_upstream_is_not_computed(
    folders: Mapping[str, Folder], kind: str
) -> None:
    def rows(on_error: str) -> list[SourceRow]:
        block = {**BLOCKS[kind], "on_upstream_error": on_error}
        return list(open_rows(TypeAdapter(InferenceData).validate_python(block), folders)[1])

    told = [(row.error, row.fault) for row in rows("skip")]
    assert told == [
        (None, ""),
        ("upstream: row 1 of 'a' failed: too long", UPSTREAM_FAULT),
        (None, ""),
    ]
    assert [row.error for row in rows("empty")] == [None] * 3
    with pytest.raises(DataError, match="row 1 of 'a' failed, and data"):
        rows("fail")


def test_through_any_number_of_stages_the_first_cause_is_told(tmp_path: Path) -> None:
    error = "upstream: row 0 of 'a' failed: too long"
    row = OutputRow(0, "p", error=error, fault=UPSTREAM_FAULT)
    folder = finish(open_store(str(tmp_path)).task("b"), [row])
    (again,) = upstream_rows(UpstreamData(type="upstream", node="b"), {"b": folder})
    assert (again.error, again.fault) == (error, UPSTREAM_FAULT)


CARRIED = [
    {"answer": "4", "n": 1, "tags": ["x"]},
    {"answer": "5", "n": 2, "tags": None},
]


@pytest.fixture
def asked(folders: Mapping[str, Folder], tmp_path: Path) -> dict[str, Folder]:
    """The nodes, and `asked`: two rows with columns."""
    rows = (SourceRow(f"q{n}", columns=each) for n, each in enumerate(CARRIED))
    lines = tmp_path / "rows.jsonl"
    texts = (json.dumps({"question": row.prompt, **(row.columns or {})}) for row in rows)
    lines.write_text("\n".join(texts))
    folder = open_store(str(tmp_path)).task("asked")
    data = DatasetData(type="dataset", url=str(lines))
    plan = spool_input("t", data, folder, max_shards=1, seed=0, upstream={})
    assert plan.columns is not None
    assert plan.columns.names == ("question", "answer", "n", "tags")
    return {**folders, "asked": finish(folder, [OutputRow(n, f"q{n}", f"O{n}") for n in (0, 1)])}


def test_columns_of_upstream_rows_stand_in_texts_and_go_on(asked: Mapping[str, Folder]) -> None:
    text = "{prompt} {output} {columns.answer} {columns.n} {columns.tags}"
    data = UpstreamData(type="upstream", node="asked", text=text)
    rows = list(open_rows(data, asked).rows)
    assert [row.prompt for row in rows] == ['q0 O0 4 1 ["x"]', "q1 O1 5 2 "]
    assert [{**row.columns} for row in rows if row.columns] == [
        {"question": f"q{n}", **each} for n, each in enumerate(CARRIED)
    ]
    assert graph(
        asked,
        text="{o}: {a}; {first}",
        columns=columns(
            o="asked.result.items[*].output",
            a="asked.result.items[*].columns.answer",
            first="asked.result.items[0].columns.n",
        ),
    ) == ["O0: 4; 1", "O1: 5; 1"]
    reference = parse_expression("asked.result.items[*].columns.tags")
    assert lookup_reference(reference, asked) == [["x"], None]
    reference = parse_expression("asked.result.items[1].columns.anwser")
    with pytest.raises(DataError, match=r"no 'anwser'; known: question, answer, n, tags"):
        lookup_reference(reference, asked)
    with pytest.raises(DataError, match=r"'\{columns.anwser\}'; did you mean 'columns.answer'"):
        upstream(asked, node="asked", text="{columns.anwser}")


def test_upstream_errors_name_what_there_is(folders: Mapping[str, Folder]) -> None:
    with pytest.raises(UnknownNameError, match="unknown upstream node 'c'; known: 'a', 'b'"):
        upstream(folders, node="c")
    with pytest.raises(DataError, match=r"'\{ouput\}'; did you mean 'output'"):
        upstream(folders, node="a", text="{ouput}")
    with pytest.raises(DataError, match=r"a single '\{' at character 5; write '\{\{'"):
        upstream(folders, node="a", text="json {")


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("a.result.items[0].output", "A0"),
        ("a.result.items[0].completion_tokens", 7),
        ("a.result.items[0].error", None),
        ("a.result.items[1].error", "too long"),
        ("a.result.items[2].prompt[3].content", "last"),
        ("a.result.items[*].output", ["A0", "", "A2 {output}"]),
        ("a.result.usage.total_tokens", 12),
        ("a.result.model", "tiny"),
        ("train.result.final_model_path", "models/x"),
        ("train.result.metrics.loss", 0.5),
        ("train.result.ok", True),
    ],
)
def test_references(folders: Mapping[str, Folder], expression: str, value: object) -> None:
    assert lookup_reference(parse_expression(expression), folders) == value


def test_all_items(folders: Mapping[str, Folder]) -> None:
    items = lookup_reference(parse_expression("b.result.items"), folders)
    assert isinstance(items, list)
    assert len(items) == 3


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("a.result.items[3].output", r"a\.result\.items\[3\]\.output: 'a' has no row 3"),
        ("a.result.items[1].output", "row 1 of 'a' failed: too long"),
        ("a.result.items[0].text", "there is no 'text'; known: index, prompt"),
        ("a.result.usage.tokens", "there is no 'tokens'; known: total_tokens"),
        ("train.result.metrics.loss.x", "there is no 'x'; the value there is float"),
        ("a.result.metrics", r"has no responses\.json"),
        ("c.result.ok", "unknown upstream node 'c'"),
    ],
)
def test_a_reference_without_a_value_says_why(
    folders: Mapping[str, Folder], expression: str, message: str
) -> None:
    with pytest.raises((DataError, UnknownNameError), match=message):
        lookup_reference(parse_expression(expression), folders)


def test_two_column_briefing(folders: Mapping[str, Folder]) -> None:
    template = {
        "name": "two_column_briefing",
        "columns": [
            {"label": "Drafts", "expr": "a.result.items"},
            {"label": "Answer", "node": "b", "path": "result.items[0].output"},
        ],
        "options": {"intro": ["Compare.", "Be brief."], "closing": ["Now answer."]},
    }
    assert graph(folders, **template) == [
        "Compare.\n\nBe brief.\n\n"
        "## Drafts\n1. A0\n2. (failed: too long)\n3. A2 {output}\n\n"
        "## Answer\nB0\n\n"
        "Now answer."
    ]


def test_inline_text_has_a_row_for_each_item_and_repeats_single_values(
    folders: Mapping[str, Folder],
) -> None:
    rows = graph(
        folders,
        text="{x} | {y} | {tokens} {{{first}}}",
        columns=columns(
            x="a.result.items[*].output",
            y="b.result.items[*].index",
            tokens="a.result.usage.total_tokens",
            first="b.result.items[0]",
        ),
    )
    assert rows == ["A0 | 0 | 12 {B0}", " | 1 | 12 {B0}", "A2 {output} | 2 | 12 {B0}"]


def test_calls_and_thoughts_are_read_by_later_stages(tmp_path: Path) -> None:
    call = ToolCall("c", FunctionCall("lookup", '{"key": 1}'))
    rows = [
        OutputRow(0, "p", "", "tool_calls", tool_calls=[call], reasoning="hm"),
        OutputRow(1, "p", "said"),
    ]
    folders = {"a": finish(open_store(str(tmp_path)).task("a"), rows)}
    given = columns(calls="a.result.items[*].tool_calls", thought="a.result.items[*].reasoning")
    called = '[{"id": "c", "function": {"name": "lookup", "arguments": "{\\"key\\": 1}"}, '
    assert graph(folders, text="{thought} {calls}", columns=given) == [
        f'hm {called}"type": "function"}}]',
        " []",
    ]
    assert graph(folders, text="{all}", columns=columns(all="a.result.items")) == [
        '1. lookup({"key": 1})\n2. said'
    ]
    name = parse_expression("a.result.items[0].tool_calls[0].function.name")
    assert lookup_reference(name, folders) == "lookup"


def test_columns_of_items_must_be_equally_long(folders: Mapping[str, Folder]) -> None:
    with pytest.raises(DataError, match=r"'y' \(short\.result\.items\[\*\]\.output\) ends after 2"):
        graph(
            folders,
            text="{x}{y}",
            columns=columns(x="a.result.items[*].output", y="short.result.items[*].output"),
        )


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ({"text": "{z}", "columns": columns(x="a.result.items")}, "labels: x"),
        ({"text": "x", "columns": columns(x="a.result.items[0].error")}, "is null"),
        ({"text": "x", "columns": columns(x="c.result.items")}, "unknown upstream node 'c'"),
        ({"text": "x", "columns": columns(x="a.result.items") * 2}, "different labels"),
    ],
)
def test_graph_template_errors(
    folders: Mapping[str, Folder], template: dict[str, object], message: str
) -> None:
    with pytest.raises((DataError, UnknownNameError), match=message):
        graph(folders, **template)
