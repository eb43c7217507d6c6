from __future__ import annotations

import base64
import csv
import hashlib
import json
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import datasets
import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mloc_dagster.compile import load_documents
from mloc_dagster.data.dataset import HubTable, dataset_rows, describe_dataset
from mloc_dagster.data.images import cell_images, externalize, with_images
from mloc_dagster.data.spool import read_input, spool_input
from mloc_dagster.errors import DataError
from mloc_dagster.results import Folder, Message, Prompt, SourceRow, open_store
from mloc_dagster.schema import DatasetData
from tests.unit.data.tables import prompts


def encoded(colour: str, form: str = "PNG") -> bytes:
    file = BytesIO()
    Image.new("RGB", (8, 8), colour).save(file, form)
    return file.getvalue()


def data_uri(data: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


def rows_of(path: Path | str, images: tuple[str, ...] = ("image",), **more: object) -> list[Prompt]:
    data = DatasetData.model_validate(
        {"type": "dataset", "url": str(path), "image_columns": images, **more}
    )
    return [row.prompt for row in dataset_rows(data).rows]


def shown(prompt: Prompt) -> tuple[list[str], list[str]]:
    """Returns the references and the texts of a prompt's one message."""
    assert not isinstance(prompt, str)
    (message,) = prompt
    assert message.role == "user"
    assert not isinstance(message.content, str)
    images = [part["image_url"]["url"] for part in message.content if part["type"] == "image_url"]
    texts = [part["text"] for part in message.content if part["type"] == "text"]
    assert [part["type"] for part in message.content] == (
        ["image_url"] * len(images) + ["text"] * len(texts)
    )
    return images, texts


def jsonl(path: Path, rows: list[dict[str, object]]) -> Path:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def test_a_path_means_a_file_beside_the_data_file(tmp_path: Path) -> None:
    file = jsonl(
        tmp_path / "q.jsonl",
        [
            {"question": "one?", "image": "pictures/a.png"},
            {"question": "two?", "image": ["https://host/b.png", "/c.png", "~/d.png"]},
            {"question": "three?", "image": None},
            {"question": "four?", "image": data_uri(b"x")},
        ],
    )
    one, two, three, four = rows_of(file)
    assert shown(one) == ([f"{tmp_path}/pictures/a.png"], ["one?"])
    assert shown(two) == (["https://host/b.png", "/c.png", "~/d.png"], ["two?"])
    assert three == "three?"
    assert shown(four) == ([data_uri(b"x")], ["four?"])


def test_a_path_in_a_remote_data_file_is_remote() -> None:
    with fsspec.open("memory://images-in-rows/q.jsonl", "w") as file:
        file.write('{"image": "a.png"}\n')
    (row,) = rows_of("memory://images-in-rows/q.jsonl")
    assert shown(row)[0] == ["memory:///images-in-rows/a.png"]


def test_several_image_columns_keep_their_order_and_csv_has_them_too(tmp_path: Path) -> None:
    with (tmp_path / "q.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["before", "text", "after"])
        table.writerow(["/a.png", "what changed?", "/b.png"])
        table.writerow(["", "what changed?", "/c.png"])
    first, second = rows_of(tmp_path / "q.csv", ("before", "after"))
    assert shown(first) == (["/a.png", "/b.png"], ["what changed?"])
    assert shown(second) == (["/c.png"], ["what changed?"])


def test_images_alone_leave_the_question_to_the_system_prompt(tmp_path: Path) -> None:
    (row,) = rows_of(jsonl(tmp_path / "q.jsonl", [{"image": "/a.png"}]))
    assert shown(row) == (["/a.png"], [])


def test_the_column_of_prompts_is_chosen_among_the_others(tmp_path: Path) -> None:
    file = jsonl(tmp_path / "q.jsonl", [{"image": "/a.png", "caption": "?"}])
    assert shown(rows_of(file)[0]) == (["/a.png"], ["?"])
    with pytest.raises(DataError, match="no column 'imagee' of images; did you mean 'image'"):
        rows_of(file, ("imagee",))


@pytest.mark.parametrize("kind", ["struct", "bytes", "list"])
def test_parquet_image_data_sets(tmp_path: Path, kind: str) -> None:
    picture = encoded("red")
    cells: dict[str, object] = {
        "struct": {"bytes": picture, "path": "a.png"},
        "bytes": picture,
        "list": [{"bytes": picture, "path": None}, {"bytes": None, "path": "b.png"}],
    }
    rows = [{"image": cells[kind], "question": f"row {number}"} for number in range(40)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "q.parquet")

    prompts = rows_of(tmp_path / "q.parquet", column="question", split="train[3:]")

    more = [f"{tmp_path}/b.png"] if kind == "list" else []
    assert [shown(prompt) for prompt in prompts] == [
        ([data_uri(picture), *more], [f"row {number}"]) for number in range(3, 40)
    ]


def test_a_cell_that_is_no_image_says_where(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [{"text": "?", "image": "/a.png"}, {"text": "?", "image": 7}]
    file = jsonl(tmp_path / "q.jsonl", rows)
    with pytest.raises(DataError, match=r"q.jsonl:2: column 'image': expected a .* got int 7"):
        rows_of(file)


def test_a_chat_gets_images_in_its_places_or_in_its_first_question() -> None:
    chat = [Message("system", "Be brief."), Message("user", "?"), Message("user", "??")]
    part = {"type": "image_url", "image_url": {"url": "/a.png"}}
    text = {"type": "text", "text": "?"}
    assert with_images(chat, ["/a.png"]) == [chat[0], Message("user", [part, text]), chat[2]]

    places = [Message("user", [text, {"type": "image"}, text])]
    assert with_images(places, ["/a.png"]) == [Message("user", [text, part, text])]
    with pytest.raises(ValueError, match="places for 1 images, not 2"):
        with_images(places, ["/a.png", "/b.png"])
    with pytest.raises(ValueError, match="no user message"):
        with_images([Message("assistant", "!")], ["/a.png"])
    assert with_images("?", []) == "?"


def test_empty_cells_have_no_image() -> None:
    for cell in (None, "", [], [None], {"bytes": None, "path": None}):
        assert cell_images(cell, str) == []


@pytest.mark.parametrize("streaming", [True, False])
def test_a_hub_data_set_with_decoded_images(tmp_path: Path, *, streaming: bool) -> None:
    picture = encoded("blue")
    features = datasets.Features(
        {"image": datasets.Image(), "images": datasets.List(datasets.Image()),
         "question": datasets.Value("string")}
    )  # fmt: skip
    image = {"bytes": picture, "path": None}
    datasets.Dataset.from_list(
        [{"image": image, "images": [image, image], "question": "?"}], features=features
    ).to_parquet(tmp_path / "train.parquet")

    table = HubTable(str(tmp_path), streaming=streaming)
    (prompt,) = prompts(table, "train", "question", ["image", "images"])
    assert shown(prompt) == ([data_uri(picture)] * 3, ["?"])


def test_the_origin_names_the_columns() -> None:
    data = DatasetData(type="dataset", url="q.jsonl", image_columns=("a", "b"))
    assert describe_dataset(data) == "q.jsonl train (images in a, b)"


@pytest.fixture(params=["local", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Folder]:
    url = str(tmp_path / "results") if request.param == "local" else "memory://inline-images"
    opened = open_store(url).task("t")
    yield opened
    opened.delete("input")
    opened.delete("plan.json")


def test_bytes_become_files_once_and_rows_keep_references(folder: Folder) -> None:
    red, blue = encoded("red"), encoded("blue", "JPEG")
    rows = [
        SourceRow("text alone", custom_id="a"),
        SourceRow(with_images("?", [data_uri(red), "https://host/x.png"])),
        SourceRow(with_images("?", [data_uri(blue), data_uri(red)]), options={"max_tokens": 3}),
        SourceRow(with_images("?", ["data:image/png;base64,A"])),
    ]
    first, second, third, fourth = externalize(iter(rows), folder)

    names = {
        data: f"input/images/{hashlib.sha256(data).hexdigest()}.{kind}"
        for data, kind in ((red, "png"), (blue, "jpeg"))
    }
    assert first == rows[0]
    assert shown(second.prompt)[0] == [f"task://{names[red]}", "https://host/x.png"]
    assert shown(third.prompt)[0] == [f"task://{names[blue]}", f"task://{names[red]}"]
    assert third.options == {"max_tokens": 3}
    assert {name: folder.read_bytes(name) for name in names.values()} == {
        name: data for data, name in names.items()
    }
    broken = shown(fourth.prompt)[0][0].removeprefix("task://")
    assert folder.read_bytes(broken) == b"data:image/png;base64,A"
    assert len(folder.list("input/images")) == 3


def test_the_spool_holds_no_bytes(folder: Folder, tmp_path: Path) -> None:
    picture = encoded("green")
    file = tmp_path / "q.parquet"
    rows = [{"image": {"bytes": picture, "path": "a.png"}, "text": f"{n}"} for n in range(20)]
    pq.write_table(pa.Table.from_pylist(rows), file)
    data = DatasetData(
        type="dataset", url=str(file), column="text", image_columns=("image",), shuffle=True
    )

    plan = spool_input("t", data, folder, 3, 1, {})

    reference = f"task://input/images/{hashlib.sha256(picture).hexdigest()}.png"
    spooled = list(read_input(folder, plan, 0, plan.rows))
    assert [shown(row.prompt)[0] for row in spooled] == [[reference]] * 20
    assert b"base64" not in folder.read_bytes(plan.chunks[0].name)


def test_images_of_a_list_are_anchored_at_the_template(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encoded("red"))
    template = tmp_path / "t.yaml"
    template.write_text(
        "spec:\n"
        "  data:\n"
        "    type: list\n"
        "    items:\n"
        "      - - role: user\n"
        "          content:\n"
        "            - {type: image_url, image_url: {url: a.png}}\n"
        "            - {type: image_url, image_url: {url: gone.png}}\n"
        "            - {type: image_url, image_url: {url: 'data:image/png;base64,AAAA'}}\n"
    )
    (row,) = load_documents(template)[0].mapping["spec"]["data"]["items"]  # type: ignore[index, call-overload]
    parts = row[0]["content"]
    assert [part["image_url"]["url"] for part in parts] == [
        str(tmp_path / "a.png"),
        "gone.png",
        "data:image/png;base64,AAAA",
    ]
