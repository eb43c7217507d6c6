from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings, strategies as st

from mloc_dagster.data import json_stream
from mloc_dagster.data.files import FileTable
from mloc_dagster.errors import DataError, MissingExtraError, TransientError
from mloc_dagster.results import FunctionCall, Message, Prompt, ToolCall
from tests.unit.data.tables import prompts

ROWS: list[dict[str, object]] = [
    {"id": number, "question": f"Fråga {number}, “so”?\nOn two lines"} for number in range(5)
]
QUESTIONS = [row["question"] for row in ROWS]
CHAT: list[dict[str, str]] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi"},
]


def write_jsonl(path: Path, rows: list[dict[str, object]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_json(path: Path, rows: list[dict[str, object]]) -> None:
    path.write_text(json.dumps(rows, indent=1, ensure_ascii=False), encoding="utf-8")


def write_json_data(path: Path, rows: list[dict[str, object]]) -> None:
    path.write_text(json.dumps({"version": [1, {"a": "b"}], "data": rows}), encoding="utf-8")


def write_csv(path: Path, rows: list[dict[str, object]]) -> None:
    lines = [f'{row["id"]},"{row["question"]}"' for row in rows]
    path.write_text("\n".join(["id,question", *lines]) + "\n", encoding="utf-8-sig")


def write_tsv(path: Path, rows: list[dict[str, object]]) -> None:
    lines = [f'{row["id"]}\t"{row["question"]}"' for row in rows]
    path.write_text("\n".join(["id\tquestion", *lines]), encoding="utf-8")


def write_parquet(path: Path, rows: list[dict[str, object]]) -> None:
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=2)


def read(url: object, column: str | None = None, split: str = "train") -> list[Prompt]:
    return list(prompts(FileTable(str(url)), split, column))


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("q.jsonl", write_jsonl),
        ("q.ndjson", write_jsonl),
        ("lines.json", write_jsonl),
        ("q.json", write_json),
        ("data.json", write_json_data),
        ("q.csv", write_csv),
        ("q.tsv", write_tsv),
        ("q.parquet", write_parquet),
    ],
)
@pytest.mark.parametrize("compression", ["", ".gz", ".zst"])
def test_each_format_gives_the_same_rows(
    tmp_path: Path,
    name: str,
    write: Callable[[Path, list[dict[str, object]]], None],
    compression: str,
) -> None:
    path = tmp_path / name
    write(path, ROWS)
    if compression == ".gz":
        path = path.with_name(name + compression)
        path.write_bytes(gzip.compress((tmp_path / name).read_bytes()))
    elif compression == ".zst":
        if name.endswith(".parquet"):
            pytest.skip("a compressed stream cannot seek; Parquet compresses inside")
        path = path.with_name(name + compression)
        with pa.output_stream(str(path), compression="zstd") as file:
            file.write((tmp_path / name).read_bytes())

    table = FileTable(str(path))

    assert read(path, "question") == QUESTIONS
    assert read(path) == QUESTIONS, "the one column with a usual name is found"
    assert read(path, "id") == ["0", "1", "2", "3", "4"]
    assert table.count("train") == 5
    assert table.splits == ("train",)


def test_text_has_a_row_a_line_and_keeps_empty_ones(tmp_path: Path) -> None:
    (tmp_path / "q.txt").write_bytes("\ufefföne\r\n\ntwo".encode())
    assert read(tmp_path / "q.txt") == ["öne", "", "two"]
    assert FileTable(str(tmp_path / "q.txt")).count("train") == 3


def test_memory_and_other_fsspec_urls(tmp_path: Path) -> None:
    fsspec.filesystem("memory").pipe("/rows/q.jsonl", b'{"text": "a"}\n{"text": "b"}\n')
    assert read("memory://rows/q.jsonl") == ["a", "b"]
    assert read("memory://rows/*.jsonl") == ["a", "b"]
    write_jsonl(tmp_path / "q.jsonl", ROWS)
    assert read(f"file://{tmp_path}/q.jsonl", "id") == ["0", "1", "2", "3", "4"]


def test_cells_become_prompts_and_none_disappears(tmp_path: Path) -> None:
    cells = ["a", None, "", 3, 2.5, True, CHAT]
    path = tmp_path / "q.jsonl"
    write_jsonl(path, [{"prompt": cell} for cell in cells])
    messages = [Message("system", "Be brief."), Message("user", "Hi")]
    assert read(path) == ["a", "", "", "3", "2.5", "true", messages]


def test_chats_in_parquet(tmp_path: Path) -> None:
    write_parquet(tmp_path / "q.parquet", [{"messages": CHAT}, {"messages": CHAT[1:]}])
    assert read(tmp_path / "q.parquet")[1] == [Message("user", "Hi")]


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_chats_of_tool_datasets(tmp_path: Path, kind: str) -> None:
    """As the hub has them: arguments as an object, no ids, null beside calls."""
    call = {"type": "function", "function": {"name": "lookup", "arguments": {"key": 1}}}
    chat = [
        {"role": "user", "content": "?", "tool_calls": None, "name": None},
        {"role": "assistant", "content": None, "tool_calls": [call, call], "name": None},
        {"role": "tool", "content": "5", "tool_calls": None, "name": "lookup"},
    ]
    path = tmp_path / f"q.{kind}"
    (write_jsonl if kind == "jsonl" else write_parquet)(path, [{"messages": chat}])
    wanted = FunctionCall("lookup", '{"key":1}')
    assert read(path) == [
        [
            Message("user", "?"),
            Message("assistant", "", tool_calls=[ToolCall(f"call_{n}", wanted) for n in (0, 1)]),
            Message("tool", "5", "lookup"),
        ]
    ]


def test_blank_lines_of_jsonl_are_no_rows_and_nan_elsewhere_is_no_error(tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "a", "x": NaN}\n\n  \n{"x": 1, "text": "b"}')
    assert read(path, "text") == ["a", "b"]
    assert FileTable(str(path)).count("train") == 2


def test_nan_is_how_data_frames_write_missing_and_infinity_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text('{"text": NaN}\n{"text": null}\n')
    assert read(path) == ["", ""]
    write_parquet(tmp_path / "q.parquet", [{"text": 1.5}, {"text": float("nan")}])
    assert read(tmp_path / "q.parquet") == ["1.5", ""]
    path.write_text('{"text": -Infinity}\n')
    with pytest.raises(DataError, match=r"q\.jsonl:1: column 'text': expected text, got -inf"):
        read(path)


@pytest.mark.parametrize("name", ["q.jsonl", "q.json", "q.csv", "q.txt"])
def test_a_first_line_of_nothing_but_a_mark_shifts_no_row(tmp_path: Path, name: str) -> None:
    (tmp_path / "plain").mkdir()
    (tmp_path / "marked").mkdir()
    json_lines = b'{"text": "a"}\n{"text": "b"}\n'
    content = b"text\na\nb\n" if name.endswith(("csv", "txt")) else json_lines
    (tmp_path / "plain" / name).write_bytes(b"\n" + content)
    (tmp_path / "marked" / name).write_bytes(b"\xef\xbb\xbf\n" + content)
    plain, marked = (FileTable(str(tmp_path / each / name)) for each in ("plain", "marked"))
    assert list(prompts(marked, "train", None)) == list(prompts(plain, "train", None))
    assert marked.count("train") == plain.count("train") == len(list(marked.records("train")))


def test_a_file_of_nothing_but_a_mark_has_no_rows(tmp_path: Path) -> None:
    for name in ("q.jsonl", "q.json", "q.csv", "q.txt"):
        (tmp_path / name).write_bytes(b"\xef\xbb\xbf")
        table = FileTable(str(tmp_path / name))
        assert (list(prompts(table, "train", None)), table.count("train")) == ([], 0)


def test_two_columns_of_one_name_are_refused_where_one_is_read(tmp_path: Path) -> None:
    path = tmp_path / "q.csv"
    path.write_text("prompt,note,note,,\na,b,c,d,e\n")
    assert read(path, "prompt") == ["a"]
    table = FileTable(str(path))
    assert list(table.records("train", ["prompt"])) == [{"prompt": "a"}]
    for rows in (table.records("train"), prompts(table, "train", "note")):
        with pytest.raises(DataError, match=r"q\.csv:1: 2 columns are called 'note'"):
            list(rows)


@pytest.mark.parametrize("url", ["q.jsonl", "*.jsonl", "."])
def test_a_pipe_is_refused_and_never_waited_for(tmp_path: Path, url: str) -> None:
    os.mkfifo(tmp_path / "q.jsonl")
    with pytest.raises(DataError, match="is a pipe or a device; name a regular file"):
        FileTable(str(tmp_path / url))


def test_long_csv_cells(tmp_path: Path) -> None:
    (tmp_path / "q.csv").write_text("text\n" + "x" * 300_000 + "\n")
    assert [len(row) for row in read(tmp_path / "q.csv")] == [300_000]


def test_a_glob_reads_files_in_order(tmp_path: Path) -> None:
    for name in ("b", "a"):
        write_jsonl(tmp_path / f"{name}.jsonl", [{"text": name}])
    (tmp_path / "notes.md").write_text("no data")
    assert read(tmp_path / "*") == ["a", "b"]


def test_a_folder_is_divided_by_the_splits_its_names_tell(tmp_path: Path) -> None:
    (tmp_path / "test").mkdir()
    write_jsonl(tmp_path / "train-00000-of-00002.jsonl", [{"text": "a"}])
    write_jsonl(tmp_path / "train-00001-of-00002.jsonl", [{"text": "b"}])
    write_csv(tmp_path / "data-validation.csv", ROWS)
    write_parquet(tmp_path / "test" / "0.parquet", [{"text": "t"}])
    (tmp_path / "README.md").write_text("no data")
    (tmp_path / ".hidden.jsonl").write_text("no data")

    table = FileTable(str(tmp_path))

    assert set(table.splits) == {"train", "validation", "test"}
    assert read(tmp_path) == ["a", "b"]
    assert read(tmp_path, split="test") == ["t"]
    assert table.count("validation") == 5


def test_a_folder_without_split_names_is_all_train(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "trained.jsonl", [{"text": "a"}])
    write_jsonl(tmp_path / "other.jsonl", [{"text": "b"}])
    assert read(tmp_path) == ["b", "a"]


def test_a_file_outside_the_splits_is_not_dropped_in_silence(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "train.jsonl", [{"text": "a"}])
    write_jsonl(tmp_path / "more.jsonl", [{"text": "b"}])
    with pytest.raises(DataError, match=r"\(train\) and 'more\.jsonl' is not"):
        FileTable(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("q.jsonl", '{"text": "a"}\n{"text": \n', r"q\.jsonl:2: broken JSON"),
        ("q.jsonl", '{"text": "a"}\n[1]\n', r"q\.jsonl:2: expected a JSON object, got list"),
        ("q.jsonl", '{"text": "a"}\n{"b": 1}\n', r"q\.jsonl:2: no column 'text'; .* has: b"),
        ("q.jsonl", '{"text": {"a": 1}}', r"q\.jsonl:1: column 'text': expected text or chat"),
        ("q.jsonl", '{"text": []}', r"q\.jsonl:1: column 'text': .* an empty list"),
        (
            "q.jsonl",
            '{"text": [{"role": "user"}]}',
            r"q\.jsonl:1: .*neither content nor tool_calls",
        ),
        ("q.jsonl", '{"text": [{"role": "usr", "content": ""}]}', r"mean 'user'"),
        (
            "q.jsonl",
            '{"text": [{"role": "assistant", "tool_calls": [{"function": "f"}]}]}',
            r"q\.jsonl:1: .*tool_calls",
        ),
        ("q.jsonl", b'{"text": "\xff"}', r"q\.jsonl:1: not UTF-8"),
        ("q.txt", b"a\n\xff", r"q\.txt:2: not UTF-8"),
        ("q.csv", "a,text\n1,2\n3\n", r"q\.csv:3: 1 cells where the header has 2"),
        ("q.csv", 'a,text\n1,"2"x\n', r"q\.csv:2: broken CSV"),
        ("q.csv", b"a,text\n1,\xff\n", r"q\.csv:\d: not UTF-8"),
        ("q.json", '[{"text": "a"},\n{"text": b}]', r"q\.json:2: broken JSON"),
        ("q.json", '[{"text": "a"}\n{"text": "b"}]', r"q\.json:2: broken JSON: expected ','"),
        ("q.json", '[{"text": "a"},\n\n3]', r"q\.json:3: expected a JSON object, got int"),
        ("q.json", '[{"text": "a"}', r"q\.json:1: broken JSON: .*the end of the file"),
        ("q.json", '[{"text": "a', r"q\.json:1: broken JSON: Unterminated"),
        ("q.json", '[{"text": "a"}] x', r"q\.json:1: text after the end"),
        ("q.json", "text", r"q\.json:1: expected a JSON array or object"),
        ("q.json", b'[{"text": "\xff"}]', r"q\.json:1: not UTF-8"),
        ("q.parquet", "PAR", r"q\.parquet: not a Parquet file"),
        ("q.jsonl.gz", "text", r"q\.jsonl\.gz: broken compression"),
    ],
)
def test_a_broken_row_is_named_by_file_and_line(
    tmp_path: Path, name: str, content: str | bytes, message: str
) -> None:
    data = content if isinstance(content, bytes) else content.encode()
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match=message):
        read(tmp_path / name, "text")


def test_a_wrong_cell_of_parquet_is_named_by_row(tmp_path: Path) -> None:
    write_parquet(tmp_path / "q.parquet", [{"text": {"a": 1}}])
    with pytest.raises(DataError, match=r"q\.parquet:row 1: column 'text': expected text"):
        read(tmp_path / "q.parquet")


def test_a_missing_column_names_those_there(tmp_path: Path) -> None:
    write_parquet(tmp_path / "q.parquet", ROWS)
    with pytest.raises(DataError, match=r"'questoin'; did you mean 'question'\? columns: id, que"):
        read(tmp_path / "q.parquet", "questoin")


@pytest.mark.parametrize(
    "row", [{"a": 1, "b": 2}, {"prompt": "a", "text": "b"}], ids=["none", "two"]
)
def test_without_an_obvious_column_the_choice_is_the_users(
    tmp_path: Path, row: dict[str, object]
) -> None:
    write_jsonl(tmp_path / "q.jsonl", [row])
    with pytest.raises(DataError, match=rf"data\.column: {', '.join(row)}"):
        read(tmp_path / "q.jsonl")


def test_a_missing_file_names_its_neighbours(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "questions.jsonl", ROWS)
    with pytest.raises(DataError, match=r"no such file in .*; did you mean 'questions\.jsonl'"):
        FileTable(str(tmp_path / "question.jsonl"))
    with pytest.raises(DataError, match=r"the folder .*/nowhere does not exist"):
        FileTable(str(tmp_path / "nowhere" / "q.jsonl"))
    with pytest.raises(DataError, match=r"no data files there; mloc reads \.jsonl"):
        FileTable(str(tmp_path / "*.parquet"))


def test_an_unknown_format_names_the_known_ones(tmp_path: Path) -> None:
    (tmp_path / "q.xlsx").write_bytes(b"")
    with pytest.raises(DataError, match=r"unknown format; mloc reads \.jsonl.*\.gz"):
        FileTable(str(tmp_path / "q.xlsx"))


def test_an_unknown_protocol_and_one_that_is_not_installed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(DataError, match="Protocol not known: s33"):
        FileTable("s33://bucket/q.jsonl")

    def not_installed(url: str) -> None:
        raise ImportError("Install s3fs")

    monkeypatch.setattr("mloc_dagster.data.files.file_system", not_installed)
    with pytest.raises(MissingExtraError, match=r"mloc-dagster\[s3\]"):
        FileTable("s3://bucket/q.jsonl")


class NoCredentialsError(Exception):
    """As botocore raises it."""


@pytest.mark.parametrize(
    ("raised", "expected", "message"),
    [
        (PermissionError("403"), DataError, "may not be read: 403"),
        (NoCredentialsError("none"), DataError, "may not be read: none"),
        (ConnectionError("refused"), TransientError, "cannot be reached: refused"),
    ],
)
def test_storage_that_refuses_or_does_not_answer(
    monkeypatch: pytest.MonkeyPatch, raised: Exception, expected: type[Exception], message: str
) -> None:
    def refuse(*_: object, **__: object) -> bool:
        raise raised

    monkeypatch.setattr(fsspec.get_filesystem_class("memory"), "isdir", refuse)
    with pytest.raises(expected, match=message):
        FileTable("memory://rows/q.jsonl")


def test_storage_that_fails_while_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_jsonl(tmp_path / "q.jsonl", ROWS)
    table = FileTable(str(tmp_path / "q.jsonl"))

    def lose(*_: object, **__: object) -> None:
        raise TimeoutError("lost")

    monkeypatch.setattr(fsspec.get_filesystem_class("file"), "open", lose)
    with pytest.raises(TransientError, match=r"q\.jsonl: cannot be read: lost"):
        list(prompts(table, "train", "id"))


def test_an_abandoned_read_closes_its_file(tmp_path: Path) -> None:
    write_csv(tmp_path / "q.csv", ROWS)
    rows = prompts(FileTable(str(tmp_path / "q.csv")), "train", "question")
    assert next(rows) == QUESTIONS[0]
    rows.close()  # type: ignore[attr-defined]


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None, max_examples=60)
@given(
    rows=st.lists(st.fixed_dictionaries({"text": st.text(), "rest": _JSON}), max_size=8),
    block=st.integers(1, 64),
    indent=st.none() | st.just(1),
    ascii_only=st.booleans(),
    wrapped=st.booleans(),
)
def test_json_reads_alike_wherever_the_blocks_end(
    rows: list[dict[str, object]], block: int, indent: int | None, ascii_only: bool, wrapped: bool
) -> None:
    document = {"data": rows} if wrapped else rows
    text = json.dumps(document, indent=indent, ensure_ascii=ascii_only)
    fsspec.filesystem("memory").pipe("/blocks/q.json", text.encode("utf-8", "surrogatepass"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_stream, "_BLOCK_BYTES", block)
        assert read("memory://blocks/q.json", "text") == [row["text"] for row in rows]
