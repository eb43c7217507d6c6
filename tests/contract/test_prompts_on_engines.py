"""What every engine reads of a row: special tokens where they belong, and no empty prompt."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mloc_dagster.executors import (
    Engine,
    EngineRequest,
    Replies,
    ShardContext,
    ShardInput,
    answer_rows,
    loader_of,
)
from mloc_dagster.models import builtin_model_path
from mloc_dagster.results import InputRow, Message, OutputRow
from mloc_dagster.schema import InferenceSpec, find_engine

pytest.importorskip("torch")

BOS = "<|system|>"
BOS_ID = 1


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tiny-chat with a tokenizer that begins each text by a token, as most models' do."""
    folder = tmp_path_factory.mktemp("bos") / "model"
    shutil.copytree(builtin_model_path("tiny-chat"), folder)
    written = json.loads((folder / "tokenizer.json").read_text())
    processor = written["post_processor"]
    processor["single"].insert(0, {"SpecialToken": {"id": BOS, "type_id": 0}})
    processor["special_tokens"] = {BOS: {"id": BOS, "ids": [BOS_ID], "tokens": [BOS]}}
    (folder / "tokenizer.json").write_text(json.dumps(written))
    return folder


def spec_of(folder: Path, engine: str) -> InferenceSpec:
    return InferenceSpec.model_validate(
        {
            "taskType": "inference",
            "enforce_cpu": True,
            "model": {
                "source": {"type": "local", "identifier": str(folder)},
                "engine": engine,
                "vllm": {"kv_cache_memory_bytes": 256 << 20} if engine == "vllm" else {},
            },
            "inference": {"temperature": 0, "max_tokens": 4},
            "data": {"type": "list", "items": ["unused"]},
        }
    )


class Listening:
    """An engine that notes the tokens it is sent."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.read: dict[int, list[int]] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def run(self, requests: Iterator[EngineRequest], replies: Replies) -> None:
        def noted() -> Iterator[EngineRequest]:
            for request in requests:
                self.read[request.row.index] = request.tokens
                yield request

        self._engine.run(noted(), replies)


@pytest.fixture(
    scope="module", params=["transformers", pytest.param("vllm", marks=pytest.mark.slow)]
)
def engine(request: pytest.FixtureRequest, folder: Path) -> Iterator[Engine]:
    if request.param == "vllm":
        pytest.importorskip("vllm", exc_type=ImportError)
    engine = loader_of(find_engine(request.param)).load(spec_of(folder, request.param))
    yield engine
    engine.close()


def answered(engine: Any, folder: Path, *rows: InputRow) -> dict[int, OutputRow]:
    emitted: dict[int, OutputRow] = {}
    context = ShardContext(
        lambda row: emitted.__setitem__(row.index, row), lambda: False, lambda line: None
    )
    shard = ShardInput("t", 0, 1, 7, iter(rows), len(rows))
    answer_rows(shard, spec_of(folder, "transformers"), engine, context)
    return emitted


def test_a_verbatim_prompt_begins_as_the_model_learnt_it_and_a_chat_as_its_template_says(
    engine: Engine, folder: Path
) -> None:
    listening = Listening(engine)
    rows = answered(
        listening,
        folder,
        InputRow(0, "Once upon a time", verbatim=True),
        InputRow(1, "Once upon a time"),
        InputRow(2, "Twice", verbatim=True),
        InputRow(3, [Message("system", "Be kind."), Message("user", "hi")]),
    )

    assert {index: tokens.count(BOS_ID) for index, tokens in listening.read.items()} == {
        0: 1,
        1: 0,
        2: 1,
        3: 1,  # the one that the template writes
    }
    assert listening.read[0][0] == listening.read[2][0] == BOS_ID
    bare = engine.tokenize(["Once upon a time"], special=False)[0]
    assert listening.read[0] == [BOS_ID, *bare]
    assert rows[0].prompt_tokens == len(bare) + 1
    assert all(row.error is None for row in rows.values())


def test_an_empty_prompt_ends_with_an_error_and_odd_ones_are_answered(
    engine: Engine, folder: Path
) -> None:
    empty = [
        "",
        " ",
        "\n\n",
        [Message("user", " ")],
        [Message("user", [{"type": "text", "text": ""}])],
    ]
    odd = ["Wie heißt die Hauptstadt? 東京 🎉", "a\u0301\u200d\ufeff", "<|end|>"]

    rows = answered(engine, folder, *(InputRow(i, text) for i, text in enumerate([*empty, *odd])))

    assert {row.error for index, row in rows.items() if index < len(empty)} == {
        "the prompt is empty"
    }
    assert [rows[index].error for index in range(len(empty), len(rows))] == [None] * len(odd)
    assert len(rows) == len(empty) + len(odd)
