"""What is ready reaches the engine at once, whatever pictures are still on their way."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from itertools import chain

import pytest

from mloc_dagster.data import with_images
from mloc_dagster.errors import TaskCancelled
from mloc_dagster.executors.base import ShardContext, ShardInput
from mloc_dagster.executors.engines.protocol import EngineRequest, Rendered, Replies
from mloc_dagster.executors.image_stream import AHEAD_ROWS, with_pictures
from mloc_dagster.executors.images import ImageLoader, LoadedImage
from mloc_dagster.executors.inference import answer_rows
from mloc_dagster.results import InputRow, OutputRow
from tests.image_server import coloured
from tests.unit.executors.test_row_reuse import CountingEngine, make_spec

Stream = Iterator[list[EngineRequest]]


class Folder:
    """A task's folder whose images named `slow` come when they are let go."""

    def __init__(self) -> None:
        self.let_go = threading.Event()
        self.in_time = True

    def read(self, name: str) -> bytes:
        if "slow" in name:
            self.in_time = self.let_go.wait(10)
        return coloured("red")


@pytest.fixture
def folder() -> Iterator[Folder]:
    made = Folder()
    yield made
    made.let_go.set()


def row(index: int, *images: str) -> InputRow:
    return InputRow(index, with_images("text", [f"task://{name}" for name in images]))


def stream(
    folder: Folder,
    *rows: InputRow,
    refused: list[str] | None = None,
    cancelled: Callable[[], bool] = lambda: False,
) -> Stream:
    requests = (EngineRequest(each, Rendered("text"), [1]) for each in rows)
    refuse = [] if refused is None else refused
    return with_pictures(
        requests, 64, folder.read, lambda request, reason: refuse.append(reason), cancelled
    )


def indexes(requests: list[EngineRequest]) -> list[int]:
    return [request.row.index for request in requests]


def test_a_picture_does_not_wait_for_the_next_one(folder: Folder) -> None:
    given = stream(folder, row(0, "fast"), row(1, "slow"))
    assert indexes(next(given)) == [0]
    assert not folder.let_go.is_set()
    folder.let_go.set()
    assert [indexes(each) for each in given] == [[1]]
    assert folder.in_time


def test_text_does_not_wait_for_pictures(folder: Folder) -> None:
    slow = [row(index, "slow") for index in range(1, AHEAD_ROWS + 1)]
    given = stream(folder, row(0), *slow, row(90))
    assert indexes(next(given)) == [0]
    assert indexes(next(given)) == [90]
    folder.let_go.set()
    assert sorted(chain.from_iterable(map(indexes, given))) == list(range(1, AHEAD_ROWS + 1))
    assert folder.in_time


def test_the_engine_has_its_first_request_while_the_second_picture_is_away(
    folder: Folder,
) -> None:
    """Through all that lies between rows and engine, windows and reuse included."""

    class Watching(CountingEngine):
        first: tuple[int, bool] | None = None

        def run(self, requests: Iterator[EngineRequest], replies: Replies) -> None:
            request = next(requests)
            self.first = request.row.index, folder.let_go.is_set()
            folder.let_go.set()
            self._answer(request, replies)
            super().run(requests, replies)

    engine = Watching()
    emitted: list[OutputRow] = []
    context = ShardContext(emitted.append, lambda: False, lambda _: None)
    rows = [row(0, "fast"), row(1, "slow")]
    shard = ShardInput("t", 0, 1, 7, rows, len(rows), folder.read)
    answer_rows(shard, make_spec(None), engine, context)
    assert engine.first == (0, False)
    assert folder.in_time
    assert sorted(each.index for each in emitted) == [0, 1]


def test_a_task_is_cancelled_while_its_pictures_are_away(folder: Folder) -> None:
    given = stream(folder, row(0, "slow"), cancelled=lambda: True)
    with pytest.raises(TaskCancelled):
        next(given)
    assert not folder.let_go.is_set()


def test_whatever_loading_raises_is_its_rows_error(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = ImageLoader.load

    def load(self: ImageLoader, reference: str) -> LoadedImage:
        if "odd" in reference:
            raise RuntimeError("https://me:hunter2@host is odd")
        return real(self, reference)

    monkeypatch.setattr(ImageLoader, "load", load)
    refused: list[str] = []
    given = stream(folder, row(0, "odd"), row(1, "fine"), refused=refused)
    assert list(chain.from_iterable(map(indexes, given))) == [1]
    assert refused == ["its images: RuntimeError: https://me:***@host is odd"]


def test_what_ends_the_process_is_nobodys_error(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(self: ImageLoader, reference: str) -> LoadedImage:
        raise KeyboardInterrupt

    monkeypatch.setattr(ImageLoader, "load", load)
    with pytest.raises(KeyboardInterrupt):
        list(stream(folder, row(0, "any")))
