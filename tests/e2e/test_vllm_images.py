"""Rows with images through vLLM, by the pipeline that every task takes."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mloc_dagster.data import with_images
from mloc_dagster.errors import InputError
from mloc_dagster.executors import (
    InferenceExecutor,
    ShardContext,
    ShardInput,
    VllmEngine,
    load_engine,
    vllm_build,
)
from mloc_dagster.results import InputRow, OutputRow
from mloc_dagster.schema import InferenceSpec
from tests.older_vision import older
from tests.tiny_vision import COLOURS, NO_IMAGE, square

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("vllm") is None or vllm_build() != "cpu",
        reason="needs vLLM's CPU build",
    ),
]


def spec_of(model: Path, **more: Any) -> InferenceSpec:
    return InferenceSpec.model_validate(
        {
            "taskType": "inference",
            "data": {"type": "list", "items": ["?"]},
            "model": {
                "source": {"type": "local", "identifier": str(model)},
                "engine": "vllm",
                "vllm": {
                    "kv_cache_memory_bytes": 256 << 20,
                    "max_num_seqs": 16,
                    "limit_mm_per_prompt": {"image": 2},
                },
                **more,
            },
            "inference": {"temperature": 0, "max_tokens": 8},
        }
    )


@pytest.fixture(scope="session")
def bare(tiny_vision: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model with a chat template that is its processor's alone."""
    return older(tiny_vision, tmp_path_factory.mktemp("vision"))


@pytest.fixture(scope="session")
def engine(bare: Path) -> Iterator[VllmEngine]:
    engine = load_engine(spec_of(bare))
    yield engine
    engine.close()


def answers(engine: VllmEngine, spec: InferenceSpec, rows: list[InputRow]) -> dict[int, OutputRow]:
    found: dict[int, OutputRow] = {}
    context = ShardContext(
        lambda row: found.__setitem__(row.index, row), lambda: False, lambda _: None
    )
    InferenceExecutor().run(ShardInput("t", 0, 1, 0, rows, len(rows)), spec, engine, context)
    return found


def test_every_colour_is_named_and_broken_images_fail_alone(
    engine: VllmEngine, bare: Path, tmp_path: Path
) -> None:
    for name in COLOURS:
        square(name, 50).save(tmp_path / f"{name}.png")
    (tmp_path / "broken.png").write_bytes((tmp_path / "red.png").read_bytes()[:60])
    shown = [[name] for name in COLOURS]
    shown += [["red", "blue"], [], ["broken"], ["gone"], ["white"], ["red", "blue", "green"]]
    rows = [
        InputRow(
            index, with_images("What colour is this?", [f"{tmp_path}/{name}.png" for name in names])
        )
        for index, names in enumerate(shown)
    ]

    found = answers(engine, spec_of(bare), rows)

    errors = {index: row.error for index, row in found.items() if row.error}
    assert errors.keys() == {10, 11, 13}, errors
    wanted = [*COLOURS, "red, blue", NO_IMAGE, "", "", "white", ""]
    assert [found[index].output for index in range(len(rows))] == wanted
    assert errors[10] == f"image {tmp_path}/broken.png: it is a broken PNG image"
    assert errors[11] == f"image {tmp_path}/gone.png: there is no such file"
    assert "2" in (errors[13] or "")


def test_adapters_are_not_merged_into_a_model_that_sees(tiny_vision: Path) -> None:
    adapters = [{"path": "/one"}, {"path": "/two"}]
    with pytest.raises(InputError, match=r"no adapter can be merged into .* a model that sees"):
        load_engine(spec_of(tiny_vision, adapters=adapters))
