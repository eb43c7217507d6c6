"""Which trainings spread one model's weights over their processes, and which may not."""

from __future__ import annotations

from typing import Any

import pytest

from mloc_dagster.schema.training.options import refused_spreading, spreads_weights
from mloc_dagster.schema.training.spec import Training


@pytest.mark.parametrize(
    ("given", "spread"),
    [
        ({}, False),
        ({"fsdp": True}, True),
        ({"fsdp": False}, False),
        ({"fsdp": "full_shard auto_wrap"}, True),
        ({"deepspeed": {"zero_optimization": {"stage": 3}}}, True),
        ({"deepspeed": {"zero_optimization": {"stage": 2}}}, False),
        ({"deepspeed": {"bf16": {"enabled": True}}}, False),
    ],
)
def test_who_holds_the_weights(given: dict[str, Any], spread: bool) -> None:
    training = Training.model_validate(given)
    assert spreads_weights(training) is spread
    assert refused_spreading(training) is None


@pytest.mark.parametrize(
    ("given", "option", "reason"),
    [
        ({"fsdp": True, "fsdp_config": {"version": 1}}, "fsdp_config", "version 1"),
        ({"fsdp": True, "fsdp_config": {"fsdp_version": "1"}}, "fsdp_config", "version 1"),
        ({"fsdp_config": {"cpu_offload": True}}, "fsdp_config", "set fsdp: true"),
        ({"fsdp": True, "deepspeed": {"bf16": {}}}, "fsdp", "give one of them"),
    ],
)
def test_what_cannot_be_had_is_named(given: dict[str, Any], option: str, reason: str) -> None:
    refused = refused_spreading(Training.model_validate(given))
    assert refused is not None
    assert refused[0] == option
    assert reason in refused[1]


def test_version_2_may_be_said() -> None:
    given = {"fsdp": True, "fsdp_config": {"version": 2, "reshard_after_forward": True}}
    assert refused_spreading(Training.model_validate(given)) is None
