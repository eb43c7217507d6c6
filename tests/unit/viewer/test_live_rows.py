"""Rows of a task that runs: they come with its part files, each once."""

from __future__ import annotations

from pathlib import Path

import pytest

from mloc_dagster.results import Folder, OutputRow, ShardWriter, open_store, read_plan
from mloc_dagster.viewer import live_rows
from mloc_dagster.viewer.compared_rows import ComparedRows
from mloc_dagster.viewer.live_rows import LiveRows, PartReader
from mloc_dagster.viewer.row_detail import row_detail
from mloc_dagster.viewer.sources import Sources
from tests.viewed_task import make_task

INPUTS = [{"question": f"q{each}", "answer": str(each)} for each in range(6)]


def answer(index: int, output: str = "", error: str | None = None) -> OutputRow:
    return OutputRow(index, f"q{index}", output or f"a{index}", error=error)


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    store = open_store(str(tmp_path))
    return make_task(store, "t", INPUTS, [answer(0), answer(3, error="boom")], shards=2, done=False)


def look(reader: PartReader, folder: Folder) -> LiveRows:
    return reader.rows(read_plan(folder), ())


def add(folder: Folder, shard: int, *rows: OutputRow, attempt: int = 2) -> None:
    plan = read_plan(folder)
    assert plan is not None
    with ShardWriter(
        folder, plan.shards[shard], attempt, flush_rows=9, flush_interval_s=60
    ) as writer:
        for row in rows:
            writer.write(row)


def shown(rows: LiveRows) -> dict[int, tuple[object, object, object]]:
    found = [rows.read_block(each, ["index", "output", "error", "answer"]).to_pylist()
             for each in range(len(rows.starts) - 1)]  # fmt: skip
    return {
        row["index"]: (row["output"], row["error"], row["answer"]) for some in found for row in some
    }


def test_rows_come_with_their_columns_and_a_retry_replaces_a_failure(folder: Folder) -> None:
    reader = PartReader(folder)
    before = look(reader, folder)
    assert shown(before) == {0: ("a0", None, "0"), 3: ("a3", "boom", "3")}
    assert look(reader, folder) is before
    add(folder, 1, answer(3, "better"), answer(4))
    after = look(reader, folder)
    assert after.version != before.version
    assert shown(after) == {
        0: ("a0", None, "0"),
        3: ("better", None, "3"),
        4: ("a4", None, "4"),
    }
    assert shown(before) == {0: ("a0", None, "0"), 3: ("a3", "boom", "3")}


def test_a_damaged_part_is_said_and_the_others_are_shown(folder: Folder) -> None:
    add(folder, 1, answer(4))
    part = next(name for name in folder.list("shards/0000", recursive=True))
    folder.write_bytes(part, b"{")
    rows = look(PartReader(folder), folder)
    assert set(shown(rows)) == {3, 4}
    assert "damaged" in rows.damaged[0]


def test_a_task_that_is_started_over_begins_anew(folder: Folder) -> None:
    reader = PartReader(folder)
    look(reader, folder)
    folder.delete("shards")
    assert look(reader, folder).rows == 0
    add(folder, 0, answer(1), attempt=1)
    assert set(shown(look(reader, folder))) == {1}


def test_memory_has_an_end(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_rows, "MOST_ROWS", 1)
    rows = look(PartReader(folder), folder)
    assert rows.cut
    assert rows.rows == 1


def test_two_tasks_are_joined_by_their_inputs(tmp_path: Path) -> None:
    store, sources = open_store(str(tmp_path)), Sources()
    a = make_task(store, "a", INPUTS, [answer(each) for each in range(6)])
    others = [INPUTS[4], INPUTS[1], INPUTS[1], {"question": "new", "answer": "-"}]
    outputs = [
        OutputRow(place, str(row["question"]), f"a{place + 4}") for place, row in enumerate(others)
    ]
    b = make_task(store, "b", others, outputs)
    compared = sources.compared(a, b)
    assert isinstance(compared, ComparedRows)
    rows = compared.read_block(0, ["prompt", "answer", "output_a", "output_b", "changed"])
    assert rows.to_pylist() == [
        {"prompt": "q1", "answer": "1", "output_a": "a1", "output_b": "a5", "changed": True},
        {"prompt": "q4", "answer": "4", "output_a": "a4", "output_b": "a4", "changed": False},
    ]
    assert compared.only_in() == (4, 2)
    assert sources.compared(a, b) is compared


def test_a_row_shows_its_messages_images_and_tokens(tmp_path: Path) -> None:
    from mloc_dagster.results import Message, TokenLogprob

    name = f"input/images/{'a' * 64}.png"
    content = [
        {"type": "image_url", "image_url": {"url": f"task://{name}"}},
        {"type": "image_url", "image_url": {"url": "task://../../etc/passwd"}},
        {"type": "image_url", "image_url": {"url": "data:image/svg+xml;base64,AA=="}},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
        {"type": "text", "text": "What is it?"},
    ]
    row = OutputRow(
        0,
        [Message("system", "Be brief."), Message("user", content)],
        "one",
        outputs=["one", "two"],
        finish_reasons=["stop", "length"],
        logprobs=[[TokenLogprob("one", -0.1, [("two", -2.0)])], []],
        prompt_tokens=3,
    )
    folder = make_task(open_store(str(tmp_path)), "t", INPUTS[:1], [row])
    detail = row_detail(Sources().rows(folder), 0, folder)
    assert [each.role for each in detail.messages] == ["system", "user"]
    assert detail.messages[1].text == "What is it?"
    pictures = [(each.file, bool(each.inline)) for each in detail.messages[1].pictures]
    assert pictures == [(name, False), ("", False), ("", False), ("", True)]
    assert detail.outputs == ["one", "two"]
    assert detail.finish_reasons == ["stop", "length"]
    assert detail.tokens[0] == [("one", -0.1, [("two", -2.0)])]
