"""What a row may say about its own answer."""

from __future__ import annotations

from typing import Any

import pytest

from mloc_dagster.executors.prompts import RowOptions
from mloc_dagster.results import InputRow
from mloc_dagster.schema import Inference

BLOCK = Inference(temperature=0.5, max_tokens=9)


def of(**options: Any) -> Any:
    return RowOptions(BLOCK).of(InputRow(0, "x", options=options))


def test_rows_without_options_have_the_tasks_block() -> None:
    assert RowOptions(BLOCK).of(InputRow(0, "x")) is BLOCK


def test_options_lie_over_the_tasks_block_and_equal_ones_share_theirs() -> None:
    options = RowOptions(BLOCK)
    first = options.of(InputRow(0, "x", options={"seed": 1, "stop": "a"}))
    again = options.of(InputRow(1, "y", options={"stop": "a", "seed": 1}))
    assert first is again
    assert first == Inference(temperature=0.5, max_tokens=9, seed=1, stop=("a",))


def test_numbers_may_be_written_either_way() -> None:
    block = of(temperature=1, max_tokens=16.0, stop=["a"], stop_token_ids=[7])
    assert block == Inference(temperature=1, max_tokens=16, stop=("a",), stop_token_ids=(7,))


def test_rows_whose_schemas_differ_in_the_order_of_properties_have_forms_of_their_own() -> None:
    options = RowOptions(BLOCK)
    for names in (["reason", "answer"], ["answer", "reason"]):
        schema = {"type": "object", "properties": {each: {"type": "string"} for each in names}}
        block = options.of(InputRow(0, "x", options={"structured_outputs": {"json": schema}}))
        assert isinstance(block, Inference)
        assert block.structured_outputs is not None
        form: Any = block.structured_outputs.json_schema
        assert list(form["properties"]) == names


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"temprature": 1}, "the row's option 'temprature'"),
        ({"temperature": "0"}, "'temperature': Input should be a valid number, not '0'"),
        ({"n": True}, "'n': Input should be a valid integer, not True"),
        ({"skip_special_tokens": 1}, "'skip_special_tokens': .* valid boolean, not 1"),
        ({"stop_token_ids": ["7"]}, "'stop_token_ids': Input should be a valid integer"),
        ({"top_p": 7}, "the row's option 'top_p': .* not 7"),
        ({"min_tokens": 10}, "'min_tokens': min_tokens 10 is more than max_tokens 9"),
        ({"stop": ["a", ""]}, "'stop.1': an empty stop string"),
        (
            {"structured_outputs": {"regex": "a"}, "ignore_eos": True},
            "'ignore_eos': ignore_eos cannot be kept with structured_outputs",
        ),
        (
            {"structured_outputs": {"json": {"type": "strin"}}},
            "'structured_outputs.json.type': unknown type 'strin'; did you mean 'string'?",
        ),
    ],
)
def test_what_a_row_cannot_ask_for_is_said(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason.replace("?", r"\?")):
        of(**options)
