from __future__ import annotations

import base64
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from mloc_dagster.data import with_images
from mloc_dagster.executors.base import ShardContext, ShardInput
from mloc_dagster.executors.inference import InferenceExecutor
from mloc_dagster.results import InputRow, OutputRow
from mloc_dagster.schema import InferenceSpec
from tests.older_vision import older
from tests.tiny_vision import COLOURS, NO_IMAGE, square


def picture(tmp_path: Path, colour: str) -> str:
    place = tmp_path / f"{colour}.png"
    square(colour, 50).save(place)
    return str(place)


def data_uri(colour: str) -> str:
    file = BytesIO()
    square(colour).save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def spec_of(model: Path, adapters: Sequence[dict[str, str]] = ()) -> InferenceSpec:
    return InferenceSpec.model_validate(
        {
            "taskType": "inference",
            "data": {"type": "list", "items": ["?"]},
            "model": {
                "source": {"type": "local", "identifier": str(model)},
                "engine": "transformers",
                "adapters": list(adapters),
            },
            "inference": {"temperature": 0, "max_tokens": 12},
            "enforce_cpu": True,
        }
    )


def answers(engine: Any, spec: InferenceSpec, rows: list[InputRow]) -> dict[int, OutputRow]:
    found: dict[int, OutputRow] = {}
    context = ShardContext(
        lambda row: found.__setitem__(row.index, row), lambda: False, lambda _: None
    )
    shard = ShardInput("t", 0, 1, 0, rows, len(rows))
    InferenceExecutor().run(shard, spec, engine, context)
    return found


@pytest.fixture(scope="module")
def vision(tiny_vision: Path) -> Any:
    return InferenceExecutor().load(spec_of(tiny_vision))


def test_mixed_rows_answer_as_each_does_alone(
    vision: Any, tiny_vision: Path, tmp_path: Path
) -> None:
    shown = [[name] for name in COLOURS] + [["red", "blue"], [], ["white", "black"]]
    rows = [
        InputRow(index, with_images("What colour is this?", [picture(tmp_path, n) for n in names]))
        for index, names in enumerate(shown)
    ]
    spec = spec_of(tiny_vision)
    together = answers(vision, spec, rows)
    wanted = [", ".join(names) or NO_IMAGE for names in shown]
    assert [together[index].output for index in range(len(rows))] == wanted
    assert [answers(vision, spec, [row])[row.index].output for row in rows] == wanted
    assert together[0].prompt_tokens == together[9].prompt_tokens + 16


def test_a_data_uri_is_seen_and_a_missing_image_is_its_rows_error(
    vision: Any, tiny_vision: Path
) -> None:
    rows = [
        InputRow(0, with_images("?", [data_uri("green")])),
        InputRow(1, with_images("?", ["/nowhere/a.png"])),
        InputRow(2, with_images("?", ["data:image/png;base64,iVBORw0KGgoAAAA="])),
    ]
    found = answers(vision, spec_of(tiny_vision), rows)
    assert found[0].output == "green"
    assert found[1].error == "image /nowhere/a.png: there is no such file"
    assert "it is a broken PNG image" in (found[2].error or "")


def test_the_processors_chat_template_is_good_enough(tiny_vision: Path, tmp_path: Path) -> None:
    folder = older(tiny_vision, tmp_path)
    engine: Any = InferenceExecutor().load(spec_of(folder))
    rows = [InputRow(0, with_images("What colour is this?", [data_uri("green")]))]
    assert answers(engine, spec_of(folder), rows)[0].output == "green"

    engine.loaded.tokenizer.chat_template = None
    (row,) = answers(engine, spec_of(folder), rows).values()
    assert "no chat template, which would say where images belong" in (row.error or "")


def test_an_adapter_answers_rows_with_images(
    vision: Any, tiny_vision: Path, tmp_path: Path
) -> None:
    peft = pytest.importorskip("peft")
    import torch
    from transformers import AutoModelForImageTextToText

    torch.manual_seed(3)
    base = AutoModelForImageTextToText.from_pretrained(tiny_vision)
    lora = peft.LoraConfig(
        r=4,
        lora_alpha=64,
        target_modules=r".*language_model.*\.(q_proj|o_proj|down_proj)",
        init_lora_weights=False,
    )
    peft.get_peft_model(base, lora).save_pretrained(tmp_path / "lora")
    rows = [
        InputRow(number, with_images("What colour is this?", [data_uri(name)]))
        for number, name in enumerate(COLOURS)
    ]
    plain = [row.output for row in answers(vision, spec_of(tiny_vision), rows).values()]
    said: dict[str, list[str]] = {}
    for apply in ("merge", "request"):
        adapter = {"path": str(tmp_path / "lora"), "apply": apply}
        spec = spec_of(tiny_vision, [adapter])
        found = answers(InferenceExecutor().load(spec), spec, rows)
        assert not [row.error for row in found.values() if row.error]
        said[apply] = [found[number].output for number in range(len(rows))]
    assert said["merge"] == said["request"]
    assert said["merge"] != plain
