from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest

from mloc_dagster.data.files import looks_like_files
from mloc_dagster.data.rows import open_rows
from mloc_dagster.errors import DataError
from mloc_dagster.results import Message, Prompt
from mloc_dagster.schema import ChatMessage, DatasetData, ListData


@pytest.fixture
def letters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with `letters.txt`: a to j, a line each."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "letters.txt"
    path.write_text("\n".join("abcdefghij"))
    return path


def rows_of(**block: object) -> list[Prompt]:
    _, rows, _ = open_rows(DatasetData.model_validate({"type": "dataset", **block}), {})
    return [row.prompt for row in rows]


@pytest.mark.parametrize(
    ("split", "expected"),
    [
        ("train", "abcdefghij"),
        ("train[:3]", "abc"),
        ("[-2:]", "ij"),
        ("train[20%:40%]", "cd"),
        ("train[:-8]+train[9:]", "abj"),
        ("train[7:-8]", ""),
    ],
)
@pytest.mark.usefixtures("letters")
def test_slices_of_a_file(split: str, expected: str) -> None:
    assert rows_of(url="letters.txt", split=split) == list(expected)


@pytest.mark.usefixtures("letters")
def test_shuffling_happens_after_slicing() -> None:
    whole = rows_of(url="letters.txt", split="train[:5]", shuffle=True, seed=5)
    window = rows_of(url="letters.txt", split="train[:5]", shuffle=True, seed=5, buffer_size=2)
    assert sorted(map(str, whole)) == sorted(map(str, window)) == list("abcde")
    assert whole != window
    assert whole == rows_of(url="letters.txt", split="train[:5]", shuffle=True, seed=5)


@pytest.mark.usefixtures("letters")
def test_an_unknown_split_lists_those_that_exist() -> None:
    with pytest.raises(DataError, match=r"letters\.txt has no split 'test'; splits: train"):
        rows_of(url="letters.txt", split="test")


def test_a_bare_slice_takes_the_first_split_without_train(tmp_path: Path) -> None:
    (tmp_path / "test.txt").write_text("a\nb")
    assert rows_of(url=str(tmp_path), split="[-1:]") == ["b"]


@pytest.mark.parametrize("field", ["name", "revision"])
@pytest.mark.usefixtures("letters")
def test_what_only_a_hub_dataset_has_is_refused_for_files(field: str) -> None:
    with pytest.raises(DataError, match=rf"data\.{field} selects within a hub dataset"):
        rows_of(url="letters.txt", **{field: "main"})


def test_paths_and_hub_ids_are_told_apart(letters: Path) -> None:
    (letters.parent / "folder").mkdir()
    files = ["s3://b/x", "a/*.jsonl", "./x", "/x", "~/x", "data/q.csv", "q.jsonl.gz", "folder"]
    assert all(map(looks_like_files, files))
    assert not any(map(looks_like_files, ["openai/gsm8k", "squad", "owner/name.v2"]))


@pytest.mark.usefixtures("letters")
def test_what_is_neither_mentions_both() -> None:
    with pytest.raises(DataError, match=r"neither a file or folder.*nor a hub id"):
        rows_of(url="data/some/folder")
    with pytest.raises(DataError, match=r"no such file.*as a hub id it would have no file suffix"):
        rows_of(url="data/letters.txt")


def test_the_origin_is_told_in_words(letters: Path) -> None:
    data = DatasetData(
        type="dataset", url=letters.name, split="train[:5]", column="text", shuffle=True, seed=3
    )
    assert open_rows(data, {})[0] == "letters.txt train[:5] (column text) shuffled, seed 3"


def test_lists_hold_text_and_chats() -> None:
    chat = (ChatMessage(role="user", content="Hi"),)
    source, rows, _ = open_rows(ListData(type="list", items=("a", chat)), {})
    assert (source, [row.prompt for row in rows]) == ("list of 2", ["a", [Message("user", "Hi")]])


def test_lists_shuffle_by_seed() -> None:
    data = ListData(type="list", items=tuple("abcdefgh"), shuffle=True, seed=1)
    first, second = ([row.prompt for row in open_rows(data, {})[1]] for _ in range(2))
    assert first == second != list("abcdefgh")
    assert sorted(map(str, first)) == list("abcdefgh")


LANGUAGES = [
    {"lang": "de", "text": "eins", "level": 1, "day": "2026-01-01"},
    {"lang": "en", "text": "two", "level": 2, "day": "2026-01-02"},
    {"lang": "de", "text": "drei", "level": 1, "day": "2026-01-02"},
    {"lang": None, "text": "4", "level": None, "day": None},
    {"lang": "de", "text": "fuenf", "level": 2, "day": "2026-01-02"},
]


@pytest.fixture(params=["jsonl", "parquet", "csv"])
def languages(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Rows in some languages, in a file of each kind."""
    table = pa.Table.from_pylist(LANGUAGES)
    path = tmp_path / f"rows.{request.param}"
    if request.param == "jsonl":
        path.write_text("".join(json.dumps(each) + "\n" for each in LANGUAGES))
    elif request.param == "csv":
        pacsv.write_csv(table, path)
    else:
        days = table["day"].cast(pa.date32())
        pq.write_table(table.set_column(3, "day", days), path)
    return str(path)


@pytest.mark.parametrize(
    ("only", "expected"),
    [
        ({"lang": "de"}, ["eins", "drei", "fuenf"]),
        ({"level": "2"}, ["two", "fuenf"]),
        ({"day": "2026-01-02"}, ["two", "drei", "fuenf"]),
        ({"lang": "de", "level": "1"}, ["eins", "drei"]),
    ],
)
@pytest.mark.parametrize("keep", ["all", False, ["level"]])
def test_only_rows_that_hold_a_value_are_read(
    languages: str, only: dict[str, str], expected: list[str], keep: object
) -> None:
    assert rows_of(url=languages, column="text", only=only, keep=keep) == expected


def test_slices_are_of_the_source_and_not_of_what_is_selected(languages: str) -> None:
    block = {"url": languages, "column": "text", "split": "train[1:3]", "only": {"lang": "de"}}
    assert rows_of(**block) == ["drei"]


def test_what_no_row_holds_is_told_with_what_they_hold(languages: str) -> None:
    wanted = r"rows\.\w+ train has 'dee' in column 'lang'; did you mean 'de'\?"
    with pytest.raises(DataError, match=wanted):
        rows_of(url=languages, column="text", only={"lang": "dee"})
    together = "has 'en' in 'lang' and '1' in 'level'"
    with pytest.raises(DataError, match=together):
        rows_of(url=languages, column="text", only={"lang": "en", "level": "1"})
    with pytest.raises(DataError, match="has no column 'lnag' to select by; did you mean 'lang'"):
        rows_of(url=languages, column="text", only={"lnag": "de"})
