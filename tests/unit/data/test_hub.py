from __future__ import annotations

import json
from pathlib import Path

import pytest

from mloc_dagster.data import dataset
from mloc_dagster.data.dataset import HubTable, dataset_rows
from mloc_dagster.data.rows import open_rows
from mloc_dagster.errors import DataError, InputError, MissingExtraError, TransientError
from mloc_dagster.net import LOCAL, Reach
from mloc_dagster.results import Message
from mloc_dagster.schema import DatasetData
from mloc_dagster.settings import settings
from tests.unit.data import tables
from tests.unit.data.tables import prompts

datasets = pytest.importorskip("datasets")

CARD = """---
configs:
- config_name: main
  data_files: [{split: train, path: main/train.jsonl}, {split: test, path: main/test.jsonl}]
- config_name: chats
  data_files: [{split: train, path: chats.jsonl}]
---
"""


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    datasets.disable_progress_bars()


@pytest.fixture
def repository(tmp_path: Path) -> str:
    """A dataset repository as the hub has them, on disk."""
    folder = tmp_path / "repository"
    (folder / "main").mkdir(parents=True)
    for split, rows in (("train", 25), ("test", 7)):
        lines = [{"question": f"{split} {number}", "answer": number} for number in range(rows)]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / "main" / f"{split}.jsonl").write_text(text)
    chat = {"messages": [{"role": "user", "content": "Hi"}]}
    (folder / "chats.jsonl").write_text(json.dumps(chat) + "\n")
    (folder / "README.md").write_text(CARD)
    return str(folder)


@pytest.fixture
def on_hub(repository: str, monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Makes the repository what the hub id `owner/questions` names; lists `streaming` asked for."""
    load = datasets.load_dataset
    asked: list[bool] = []

    def load_dataset(
        url: str, name: str | None, *, revision: str | None, streaming: bool
    ) -> object:
        assert url == "owner/questions"
        asked.append(streaming)
        return load(repository, name, revision=revision, streaming=streaming)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return asked


@pytest.mark.parametrize("streaming", [True, False])
def test_rows_splits_and_counts(repository: str, *, streaming: bool) -> None:
    table = HubTable(repository, "main", streaming=streaming)
    assert table.splits == ("train", "test")
    assert table.count("train") == 25
    assert list(prompts(table, "test", "question"))[:2] == ["test 0", "test 1"]
    assert next(prompts(table, "test", None)) == "test 0"
    assert next(prompts(table, "test", "answer")) == "0"


@pytest.mark.parametrize("streaming", [True, False])
def test_what_rows_bring_along_is_the_same_in_batches_and_one_by_one(
    repository: str, monkeypatch: pytest.MonkeyPatch, *, streaming: bool
) -> None:
    def found(block: dict[str, str]) -> list[tuple[object, dict[str, object]]]:
        table = HubTable(repository, "main", streaming=streaming)
        return [
            (row.prompt, dict(row.columns or {})) for row in tables.rows(table, "train", **block)
        ]

    blocks = [{"column": "question"}, {"prompt": "{question}?", "id_column": "answer"}]
    batches = [found(block) for block in blocks]
    assert batches[0][24] == ("train 24", {"question": "train 24", "answer": 24})
    assert batches[1][24] == ("train 24?", {"question": "train 24", "answer": 24, "id": 24})
    monkeypatch.setattr(dataset, "_is_plain", lambda _: False)
    assert batches == [found(block) for block in blocks]


@pytest.mark.parametrize("streaming", [True, False])
def test_chats(repository: str, *, streaming: bool) -> None:
    table = HubTable(repository, "chats", streaming=streaming)
    assert list(prompts(table, "train", None)) == [[Message("user", "Hi")]]


@pytest.mark.parametrize(
    ("split", "expected"),
    [
        ("train[:2]", ["train 0", "train 1"]),
        ("[-1:]", ["train 24"]),
        ("train[8%:12%]+test[:1]", ["train 2", "test 0"]),
    ],
)
def test_a_hub_id_with_split_arithmetic_streams(
    on_hub: list[bool], split: str, expected: list[str]
) -> None:
    data = DatasetData(type="dataset", url="owner/questions", name="main", split=split)
    source, rows, _ = open_rows(data, {})
    assert [row.prompt for row in rows] == expected
    assert source == f"owner/questions main {split}"
    assert on_hub == [True]


def test_a_whole_shuffle_downloads_and_gives_the_same_order_as_from_a_file(
    on_hub: list[bool], repository: str
) -> None:
    hub = DatasetData(
        type="dataset", url="owner/questions", name="main", column="question", shuffle=True, seed=3
    )
    file = DatasetData(
        type="dataset",
        url=f"{repository}/main/train.jsonl",
        column="question",
        shuffle=True,
        seed=3,
    )
    rows = [row.prompt for row in dataset_rows(hub).rows]
    assert rows == [row.prompt for row in dataset_rows(file).rows]
    assert rows != sorted(rows, key=str)
    assert on_hub == [False]


def test_a_shuffle_within_a_buffer_streams(on_hub: list[bool]) -> None:
    data = DatasetData(
        type="dataset", url="owner/questions", name="main", shuffle=True, buffer_size=5
    )
    assert len({str(row.prompt) for row in dataset_rows(data).rows}) == 25
    assert on_hub == [True]


def test_offline_everything_comes_from_the_cache(
    on_hub: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    data = DatasetData(type="dataset", url="owner/questions", name="main")
    assert len([row.prompt for row in dataset_rows(data).rows]) == 25
    assert on_hub == [False]


def test_unknown_names_list_those_that_exist(repository: str) -> None:
    with pytest.raises(DataError, match=r"mean 'main'\? configurations: main, chats"):
        HubTable(repository, "mian", streaming=True)
    with pytest.raises(DataError, match=r"choose one with data\.name: main, chats"):
        HubTable(repository, streaming=True)
    with pytest.raises(DataError, match=r"no column 'questoin'; did you mean 'question'"):
        next(prompts(HubTable(repository, "main", streaming=True), "test", "questoin"))


@pytest.mark.usefixtures("on_hub")
def test_an_unknown_split_lists_those_that_exist() -> None:
    data = DatasetData(type="dataset", url="owner/questions", name="main", split="tset[:3]")
    with pytest.raises(DataError, match=r"'tset'; did you mean 'test'\? splits: train, test"):
        open_rows(data, {})


@pytest.mark.parametrize("streaming", [True, False])
def test_a_broken_file_of_the_dataset_is_the_users_to_mend(
    tmp_path: Path, *, streaming: bool
) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "train.jsonl").write_text('{"text": \n{"tex')
    with pytest.raises(DataError, match=r"dataset '.*broken' cannot be read"):
        list(prompts(HubTable(str(tmp_path / "broken"), streaming=streaming), "train", "text"))


@pytest.mark.parametrize(
    ("raised", "expected", "message"),
    [
        (ConnectionError("no route"), TransientError, "hub cannot be reached .*'owner/d'.*no rou"),
        (
            datasets.exceptions.DatasetNotFoundError("doesn't exist"),
            DataError,
            "'owner/d' is no file or folder here, nor a dataset",
        ),
    ],
)
def test_a_hub_that_does_not_answer(
    monkeypatch: pytest.MonkeyPatch, raised: Exception, expected: type[Exception], message: str
) -> None:
    def load_dataset(*_: object, **__: object) -> None:
        raise raised

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(expected, match=message):
        dataset_rows(DatasetData(type="dataset", url="owner/d"))


def test_without_datasets_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(MissingExtraError, match=r"mloc-dagster\[hf\]"):
        HubTable("owner/d", streaming=True)


@pytest.mark.parametrize("streaming", [True, False])
@pytest.mark.parametrize("place", ["{tmp}/secret.jsonl", "file://{tmp}/secret.jsonl"])
def test_a_card_leads_a_submitted_task_to_no_file_of_the_worker(
    repository: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, *, streaming: bool
) -> None:
    monkeypatch.setenv("MLOC_API_DATA_ROOTS", repository)
    settings.cache_clear()
    with Reach("api").applied():
        assert HubTable(repository, "main", streaming=streaming).count("train") == 25
    secret = tmp_path / "secret.jsonl"
    secret.write_text('{"question": "secret"}\n')
    card = Path(repository) / "README.md"
    card.write_text(CARD.replace("main/train.jsonl", place.format(tmp=tmp_path)))
    with Reach("api").applied(), pytest.raises(InputError, match="MLOC_API_DATA_ROOTS"):
        HubTable(repository, "main", streaming=streaming)


def test_a_card_leads_nobody_to_a_link_local_address(repository: str) -> None:
    card = Path(repository) / "README.md"
    card.write_text(CARD.replace("main/train.jsonl", "http://169.254.169.254/a.jsonl"))
    for reach in (LOCAL, Reach("api")):
        with reach.applied(), pytest.raises(InputError, match="link-local"):
            list(prompts(HubTable(repository, "main", streaming=True), "train", "question"))
