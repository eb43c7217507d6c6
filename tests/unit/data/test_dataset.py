from __future__ import annotations

from pathlib import Path

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
