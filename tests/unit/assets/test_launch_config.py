"""What the launchpad offers: every field of a task, typed and described, and no secret."""

from __future__ import annotations

import json
from typing import Any

import dagster as dg
import pytest

from mloc_dagster.assets.launch_config import launch_config, overrides_of
from mloc_dagster.schema import RowSpec, find_task_type, task_types


def kind_of(field: dg.Field) -> str:
    return field.config_type.given_name or type(field.config_type).__name__


def below(config: Any, *path: str) -> dg.Field:
    for step in path[:-1]:
        config = config[step].config_type.fields
    return config[path[-1]]


def test_sampling_seed_and_prompt_are_typed_and_described() -> None:
    config = launch_config(find_task_type("inference").spec)
    temperature = below(config, "inference", "temperature")
    assert kind_of(temperature) == "Float"
    assert temperature.description == "0 is greedy. Default: 0.7."
    assert kind_of(below(config, "inference", "seed")) == "Int"
    assert kind_of(below(config, "inference", "system_prompt")) == "String"
    source = below(config, "model", "source", "type").config_type
    assert {each.config_value for each in source.enum_values} == {
        "builtin",
        "huggingface",
        "openai",
        "local",
    }


def test_options_of_a_library_may_be_given_beyond_those_that_are_listed() -> None:
    config = launch_config(find_task_type("grpo").spec)
    assert kind_of(below(config, "training", "learning_rate")) == "Float"
    training = config["training"].config_type
    assert isinstance(training, dg.Permissive)


@pytest.mark.parametrize("name", [name for name, each in task_types().items() if each.executor])
def test_each_task_type_has_a_config_of_which_nothing_is_required(name: str) -> None:
    spec = find_task_type(name).spec
    config = launch_config(spec)
    assert {"data", "parallel", "output"} <= set(config)
    assert ("prompts" in config) is issubclass(spec, RowSpec)
    dg.op(name=f"op_{name}", config_schema=dict(config))(lambda _: None)
    assert not any(each.is_required for each in config.values())


def test_secrets_are_left_out() -> None:
    destination = below(
        launch_config(find_task_type("echo").spec), "output", "destination"
    ).config_type.fields
    assert "url" in destination
    assert "headers" not in destination


def test_prompts_are_rows() -> None:
    assert json.loads(overrides_of({"prompts": ["a"], "inference": {"n": 2}})) == {
        "inference": {"n": 2},
        "data": {"type": "list", "items": ["a"]},
    }
