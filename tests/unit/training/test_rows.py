"""Rows to train on: columns of each task type, bad rows, and the file that is written."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mloc_dagster.data import (
    TrainingInputSummary,
    check_budget,
    evaluation_rows,
    open_training_rows,
    write_evaluation_rows,
    write_training_rows,
)
from mloc_dagster.errors import DataError
from mloc_dagster.results import Folder, open_store
from mloc_dagster.schema import Evaluation, TrainingData, TrainingMethod, find_task_type

USER = {"role": "user", "content": "Hi"}
GOOD = {"role": "assistant", "content": "Hello!"}
BAD = {"role": "assistant", "content": "Go away"}


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return open_store(str(tmp_path / "results")).task("t")


def method(task_type: str) -> TrainingMethod:
    return find_task_type(task_type).spec.method


def lines(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def inline(*rows: dict[str, Any], **fields: Any) -> TrainingData:
    return TrainingData(rows=rows, **fields)


def rows_of(task_type: str, *rows: dict[str, Any], **fields: Any) -> list[dict[str, Any]]:
    found = open_training_rows(inline(*rows, **fields), method(task_type))
    result = list(found)
    assert found.bad == []
    return result


def reason(task_type: str, *rows: dict[str, Any], **fields: Any) -> str:
    found = open_training_rows(inline(*rows, **fields), method(task_type))
    list(found)
    assert found.bad_count == 1
    return found.bad[0][1]


@pytest.mark.parametrize(
    ("fields", "row", "expected"),
    [
        (
            {"prompt_column": "question", "response_column": "answer"},
            {"question": "2+2?", "answer": 4, "id": 7},
            {"prompt": "2+2?", "completion": "4"},
        ),
        ({"text_column": "body"}, {"body": "Once", "text": "no"}, {"text": "Once"}),
        ({"messages_column": "chat"}, {"chat": [USER, GOOD]}, {"messages": [USER, GOOD]}),
        ({}, {"messages": [USER, GOOD], "text": "no"}, {"messages": [USER, GOOD]}),
        ({}, {"prompt": "a", "completion": "b", "text": "no"}, {"prompt": "a", "completion": "b"}),
        ({}, {"text": "Once", "source": "web"}, {"text": "Once"}),
        ({}, {"prompt": [USER], "completion": [GOOD]}, {"prompt": [USER], "completion": [GOOD]}),
    ],
)
@pytest.mark.parametrize("task_type", ["sft", "lora_sft"])
def test_sft_takes_named_columns_or_trls_own(
    task_type: str, fields: dict[str, Any], row: dict[str, Any], expected: dict[str, Any]
) -> None:
    assert rows_of(task_type, row, **fields) == [expected]


def test_messages_lose_what_a_table_filled_in_and_keep_the_rest() -> None:
    row = {"messages": [{**USER, "name": None}, {**GOOD, "name": "Ada"}]}
    parts = {"role": "user", "content": [{"type": "text", "text": "a"}]}
    assert rows_of("sft", row) == [{"messages": [USER, {**GOOD, "name": "Ada"}]}]
    assert rows_of("sft", {"messages": [parts, GOOD]})[0]["messages"][0]["content"] == "a"


@pytest.mark.parametrize(
    ("task_type", "fields", "message"),
    [
        ("sft", {}, r"data\.prompt_column and data\.response_column.*columns: question, answer"),
        ("sft", {"prompt_column": "qestion"}, r"'qestion' \(data\.prompt_column\).*'question'\?"),
        ("sft", {"prompt_column": "question"}, r"no column 'completion'.*data\.response_column"),
        ("sft", {"text_column": "a", "messages_column": "b"}, "messages_column and text_column"),
        ("dpo", {"prompt_column": "question"}, r"no column 'chosen'; say with data\.chosen_column"),
        ("kto", {"prompt_column": "question"}, "no column 'completion'"),
        ("grpo", {"prompt_column": "q"}, "no column 'q'.*columns: question, answer"),
    ],
)
def test_a_column_that_is_not_there_is_told_with_those_that_are(
    task_type: str, fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        open_training_rows(inline({"question": "q", "answer": "a"}, **fields), method(task_type))


def test_preferences() -> None:
    texts = {"prompt": "Hi", "chosen": "Hello!", "rejected": "Go away"}
    assert rows_of("dpo", texts) == rows_of("reward", texts) == [texts]
    data = TrainingData(preferences=(texts,))  # pyright: ignore[reportArgumentType]
    assert list(open_training_rows(data, method("dpo"))) == [texts]
    named = {"q": "Hi", "a": "Hello!", "b": "Go away"}
    fields = {"prompt_column": "q", "chosen_column": "a", "rejected_column": "b"}
    assert rows_of("dpo", named, **fields) == [texts]


@pytest.mark.parametrize("prompt", [{}, {"prompt": "Hi"}, {"prompt": [USER]}])
def test_a_prompt_that_both_answers_repeat_is_told_apart(prompt: dict[str, Any]) -> None:
    row = {**prompt, "chosen": [USER, GOOD], "rejected": [USER, BAD]}
    expected = {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]}
    assert rows_of("dpo", row) == rows_of("reward", row) == [expected]


def test_a_reward_model_needs_no_prompt() -> None:
    row = {"chosen": "Hi! Hello!", "rejected": "Hi! Go away"}
    assert rows_of("reward", row) == [row]
    assert "share no prompt" in reason("dpo", row)


def test_kto_takes_labels_in_any_spelling_and_unpairs_preferences() -> None:
    labelled = [
        {"prompt": "Hi", "completion": "Hello!", "label": label}
        for label in (True, "True", 1, "1", 1.0)
    ]
    assert {row["label"] for row in rows_of("kto", *labelled)} == {True}
    assert rows_of("kto", {"prompt": "Hi", "chosen": "Hello!", "rejected": "Go away"}) == [
        {"prompt": "Hi", "completion": "Hello!", "label": True},
        {"prompt": "Hi", "completion": "Go away", "label": False},
    ]


@pytest.mark.parametrize("task_type", ["ppo", "grpo", "rloo"])
def test_online_tasks_keep_the_other_columns(task_type: str) -> None:
    row = {"question": "2+2?", "answer": 4, "tags": ["sum"]}
    assert rows_of(task_type, row) == [{"prompt": "2+2?", "answer": 4, "tags": ["sum"]}]
    odd = {"riddle": "2+2?", "n": 4}
    assert rows_of(task_type, odd) == [{"prompt": "2+2?", "n": 4}]
    data = TrainingData(prompts=("a", "b"))
    assert list(open_training_rows(data, method(task_type))) == [{"prompt": "a"}, {"prompt": "b"}]


def test_a_prompt_column_that_another_replaces_is_told() -> None:
    found = open_training_rows(
        inline({"prompt": "old", "q": "new"}, prompt_column="q"), method("ppo")
    )
    assert list(found) == [{"prompt": "new"}]
    assert found.source.endswith("(prompt: q; the column 'prompt' is left out)")


def test_an_ambiguous_prompt_is_asked_for() -> None:
    with pytest.raises(DataError, match=r"data\.prompt_column.*columns: left, right"):
        open_training_rows(inline({"left": "a", "right": "b"}), method("ppo"))


@pytest.mark.parametrize(
    ("task_type", "row", "expected"),
    [
        ("sft", {"prompt": "a", "completion": None}, "completion is missing"),
        ("sft", {"prompt": " \n", "completion": "b"}, "prompt is empty"),
        ("sft", {"prompt": {"a": 1}, "completion": "b"}, "prompt holds dict {'a': 1}, not text"),
        ("sft", {"messages": "Hi"}, "messages holds str 'Hi', not a list of chat messages"),
        ("sft", {"messages": []}, "messages is empty"),
        ("sft", {"messages": [USER]}, "no message of the assistant"),
        ("sft", {"messages": ["Hi"]}, "messages holds str 'Hi' where message 0 should be"),
        ("sft", {"messages": [{"role": "users", "content": "a"}]}, "'users'; did you mean 'user'"),
        ("sft", {"messages": [{"role": "user", "content": 3}, GOOD]}, "message 0 whose content"),
        ("sft", {"prompt": "a", "completion": [USER]}, "does not end with a message of the assist"),
        (
            "dpo",
            {"prompt": "a", "chosen": "b", "rejected": "b"},
            "chosen and rejected are the same",
        ),
        ("dpo", {"prompt": "a", "chosen": "b", "rejected": [BAD]}, "one of chosen and rejected is"),
        ("dpo", {"prompt": "a", "chosen": [GOOD], "rejected": [GOOD, USER, BAD]}, "the beginning"),
        ("dpo", {"prompt": "Bye", "chosen": [USER, GOOD], "rejected": [USER, BAD]}, "the prompt's"),
        ("kto", {"prompt": "a", "completion": "b", "label": "good"}, "neither true nor false"),
        ("ppo", {"prompt": ""}, "prompt is empty"),
    ],
)
def test_a_row_that_is_of_no_use_is_told_with_its_reason(
    task_type: str, row: dict[str, Any], expected: str
) -> None:
    assert expected in reason(task_type, row)


def test_bad_rows_are_left_out_and_counted(folder: Folder) -> None:
    rows = [{"text": str(n) if n % 5 else None} for n in range(10)]
    written = write_training_rows(inline(*rows, error_budget=0.2), method("sft"), folder)
    assert (written.rows, written.read, written.bad) == (8, 10, 2)
    assert written.first_bad == ((0, "text is missing"), (5, "text is missing"))
    assert TrainingInputSummary.model_validate_json(written.model_dump_json()) == written


def test_more_bad_rows_than_the_budget_end_it_and_leave_no_file(folder: Folder) -> None:
    rows = [{"text": "a"}, {"text": ""}, {"text": 1}, {"text": None}]
    message = r"2 of 4 rows .* data\.error_budget 0\.25 allows 1: row 1: text is empty; row 3: text"
    with pytest.raises(DataError, match=message):
        write_training_rows(inline(*rows, error_budget=0.25), method("sft"), folder)
    assert folder.list(recursive=True) == []


def test_a_budget_is_read_as_for_results() -> None:
    check_budget(10, 1, [(0, "x")], 0.01)
    with pytest.raises(DataError, match="1 of 10"):
        check_budget(10, 1, [(0, "x")], 0.0)
    with pytest.raises(DataError, match="1 of 1"):
        check_budget(1, 1, [(0, "x")], 1.0)
    with pytest.raises(DataError, match=r"row 4: x …$"):
        check_budget(10, 6, [(n, "x") for n in range(6)], 0.0)


def test_the_file_has_a_line_a_row_and_a_version(folder: Folder) -> None:
    written = write_training_rows(inline({"text": "ä"}, {"text": "b"}), method("sft"), folder)
    content = folder.read_bytes("input/train.jsonl")
    assert content == '{"text":"ä"}\n{"text":"b"}\n'.encode()
    assert written.data_version == hashlib.sha256(content).hexdigest()
    assert written.source == "2 rows of the template (text)"


def test_an_empty_input_is_an_error(tmp_path: Path, folder: Folder) -> None:
    data = TrainingData(dataset_name=lines(tmp_path / "none.jsonl", []))
    with pytest.raises(DataError, match=r"the input is empty: .*none\.jsonl train gave no rows"):
        write_training_rows(data, method("sft"), folder)


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    match path.suffix:
        case ".jsonl":
            lines(path, rows)
        case ".json":
            path.write_text(json.dumps(rows))
        case ".parquet":
            pq.write_table(pa.Table.from_pylist(rows), path)
        case _:
            text = "".join(f"{row['n']},{row['prompt']},{row['completion']}\n" for row in rows)
            path.write_text("n,prompt,completion\n" + text)


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".parquet"])
def test_each_format_gives_the_same_rows(tmp_path: Path, suffix: str) -> None:
    rows = [{"n": n, "prompt": f"p{n}", "completion": f"c{n}"} for n in range(50)]
    path = tmp_path / f"rows{suffix}"
    _write(path, rows)
    data = TrainingData(dataset_name=str(path), split="train[10%:20%]")
    expected = [{"prompt": f"p{n}", "completion": f"c{n}"} for n in range(5, 10)]
    assert list(open_training_rows(data, method("sft"))) == expected
    online = list(open_training_rows(data, method("grpo")))
    assert [str(row["n"]) for row in online] == ["5", "6", "7", "8", "9"]


def test_the_shuffle_is_of_the_slice_and_before_the_cut(tmp_path: Path) -> None:
    path = lines(tmp_path / "rows.jsonl", [{"text": str(n)} for n in range(100)])
    data = TrainingData(dataset_name=path, split="train[:50]", shuffle=True, seed=3, max_samples=10)
    first = [row["text"] for row in open_training_rows(data, method("sft"))]
    assert first == [row["text"] for row in open_training_rows(data, method("sft"))]
    assert len(set(first)) == 10
    assert max(map(int, first)) > 10
    assert max(map(int, first)) < 50
    other = data.model_copy(update={"seed": 4})
    assert first != [row["text"] for row in open_training_rows(other, method("sft"))]


def test_a_bad_row_keeps_its_place_through_the_shuffle(tmp_path: Path) -> None:
    rows = [{"text": "" if n == 17 else str(n)} for n in range(30)]
    data = TrainingData(dataset_name=lines(tmp_path / "r.jsonl", rows), shuffle=True)
    found = open_training_rows(data, method("sft"))
    assert len(list(found)) == 29
    assert found.bad == [(17, "text is empty")]
    assert found.count == 30


def test_a_row_that_lacks_a_column_is_only_a_bad_row(tmp_path: Path) -> None:
    rows = [{"prompt": "a"}, {"prompt": "a", "completion": "b"}]
    found = open_training_rows(
        TrainingData(dataset_name=lines(tmp_path / "r.jsonl", rows)), method("sft")
    )
    assert list(found) == [{"prompt": "a", "completion": "b"}]
    assert found.bad == [(0, "completion is missing")]


def test_what_a_data_frame_writes_for_missing_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": NaN}\n{"text": "a"}\n')
    found = open_training_rows(TrainingData(dataset_name=str(path)), method("sft"))
    assert list(found) == [{"text": "a"}]
    assert found.bad == [(0, "text is missing")]


def test_rows_are_streamed(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    lines(path, [{"text": str(n)} for n in range(1000)])
    with path.open("a") as file:
        file.write("{broken")
    stream = iter(open_training_rows(TrainingData(dataset_name=str(path)), method("sft")))
    assert next(stream) == {"text": "0"}
    with pytest.raises(DataError, match=r"rows\.jsonl:1001: broken JSON"):
        list(stream)


def test_messages_name_the_fields_of_this_block(tmp_path: Path) -> None:
    path = lines(tmp_path / "rows.jsonl", [{"text": "a"}])
    with pytest.raises(DataError, match=r"data\.config_name selects .* data\.dataset_name"):
        open_training_rows(TrainingData(dataset_name=path, config_name="main"), method("sft"))
    with pytest.raises(DataError, match=r"data\.dataset_name 'no such' is neither"):
        open_training_rows(TrainingData(dataset_name="no such"), method("sft"))
    with pytest.raises(DataError, match="no split 'tset'"):
        open_training_rows(TrainingData(dataset_name=path, split="tset"), method("sft"))


@pytest.mark.parametrize("shuffle", [True, False])
def test_rows_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, shuffle: bool) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    datasets.disable_progress_bars()
    (tmp_path / "hub").mkdir()
    chats = [{"chat": [USER, {**GOOD, "content": f"Hello {n}"}], "id": n} for n in range(6)]
    lines(tmp_path / "hub" / "train.jsonl", [*chats, {"chat": None, "id": 6}])
    load = datasets.load_dataset

    def load_dataset(url: str, name: str | None, *, revision: str, streaming: bool) -> object:
        assert (url, name, revision) == ("owner/chats", None, "v1")
        return load(str(tmp_path / "hub"), streaming=streaming)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    data = TrainingData(
        dataset_name="owner/chats",
        revision="v1",
        split="train[2:]",
        messages_column="chat",
        shuffle=shuffle,
    )
    found = open_training_rows(data, method("sft"))
    said = sorted(row["messages"][1]["content"] for row in found)
    assert said == [f"Hello {n}" for n in range(2, 6)]
    assert found.bad == [(4, "chat is missing")]
    assert found.source.startswith("owner/chats train[2:] at v1")


def test_a_lone_surrogate_spoils_its_row_only(tmp_path: Path, folder: Folder) -> None:
    path = tmp_path / "rows.jsonl"
    roles = '{"role": "user", "content": "a"}, {"role": "assistant", "content": "%s"}'
    chat = f'{{"messages": [{roles}]}}'
    path.write_text(chat % "b" + "\n" + chat % "\\ud800" + "\n")
    data = TrainingData(dataset_name=str(path), error_budget=0.5, shuffle=True)
    summary = write_training_rows(data, method("sft"), folder)
    assert (summary.rows, summary.bad) == (1, 1)
    assert "not valid Unicode" in summary.first_bad[0][1]
    with pytest.raises(DataError, match="row 0: text is not valid Unicode"):
        write_training_rows(inline({"text": "\ud800"}), method("sft"), folder)


def evaluated(task_type: str, row: dict[str, Any], *metrics: str, **fields: Any) -> dict[str, Any]:
    evaluation = Evaluation(data=inline(row, **fields), metrics=metrics or ("loss",))
    return next(iter(evaluation_rows(evaluation, method(task_type))))


@pytest.mark.parametrize("task_type", ["sft", "dpo", "kto", "ppo", "grpo"])
def test_evaluation_rows_have_a_prompt_and_its_right_answer(task_type: str) -> None:
    row = {"prompt": "2+2?", "answer": 4, "level": "easy"}
    expected = {"prompt": "2+2?", "completion": "4", "level": "easy"}
    assert evaluated(task_type, row) == expected


def test_evaluation_rows_may_be_texts_chats_or_comparisons() -> None:
    assert evaluated("sft", {"text": "Once"}) == {"text": "Once"}
    assert evaluated("dpo", {"messages": [USER, GOOD]}) == {"messages": [USER, GOOD]}
    pair = {"prompt": "Hi", "chosen": "Hello!", "rejected": "Go away"}
    for task_type in ("sft", "dpo", "reward"):
        assert evaluated(task_type, pair, "win_rate") == pair


def test_answers_that_are_labelled_bad_are_no_right_answers() -> None:
    rows = [{"prompt": "a", "completion": each, "label": each == "b"} for each in "bc"]
    evaluation = Evaluation(data=inline(*rows))
    found = evaluation_rows(evaluation, method("kto"))
    assert [row["completion"] for row in found] == ["b"]
    assert found.source.endswith("; only those labelled as good)")


@pytest.mark.parametrize(
    ("task_type", "row", "metrics", "message"),
    [
        ("grpo", {"prompt": "a"}, ("exact_match",), r"exact_match .*data\.response_column"),
        ("sft", {"prompt": "a", "completion": "b"}, ("win_rate",), "win_rate .*chosen_column"),
        ("reward", {"prompt": "a", "completion": "b"}, ("loss",), "loss .*chosen_column"),
    ],
)
def test_what_a_metric_needs_is_asked_for_before_anything_runs(
    task_type: str, row: dict[str, Any], metrics: tuple[str, ...], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        evaluated(task_type, row, *metrics)


def test_a_metric_that_needs_no_right_answer_does_without() -> None:
    evaluation = Evaluation(data=inline({"prompt": "a"}), metrics=("regex",), pattern="x")
    assert list(evaluation_rows(evaluation, method("grpo"))) == [{"prompt": "a"}]


def test_evaluation_rows_are_written_beside_the_others(folder: Folder) -> None:
    written = write_evaluation_rows(Evaluation(data=inline({"text": "a"})), method("sft"), folder)
    assert written.name == "input/eval.jsonl"
    assert folder.read_bytes(written.name) == b'{"text":"a"}\n'


def test_only_rows_that_hold_a_value_are_trained_on(tmp_path: Path, folder: Folder) -> None:
    rows = [{"text": "eins", "lang": "de"}, {"text": "two", "lang": "en"}]
    data = TrainingData(dataset_name=lines(tmp_path / "rows.jsonl", rows), only={"lang": "en"})
    written = write_training_rows(data, method("sft"), folder)
    assert (written.rows, written.read) == (1, 1)
    assert folder.read_bytes("input/train.jsonl") == b'{"text":"two"}\n'
    assert rows_of("sft", *rows, only={"lang": "de"}) == [{"text": "eins"}]
    with pytest.raises(DataError, match=r"has 'fr' in column 'lang'; there are: 'de', 'en'"):
        rows_of("sft", *rows, only={"lang": "fr"})
    with pytest.raises(DataError, match="no column 'lnag' to select by; did you mean 'lang'"):
        rows_of("sft", *rows, only={"lnag": "fr"})
    with pytest.raises(ValueError, match="only selects by columns: give dataset_name or rows"):
        TrainingData(prompts=("a",), only={"lang": "en"})
