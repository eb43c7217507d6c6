"""Does a training spread one model's weights over its processes, so that none holds them all?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from mloc_dagster.schema.training import Training

_PARTITIONED = 3
"""The stage of DeepSpeed's ZeRO that spreads weights; 1 and 2 spread what belongs to them."""

_FLAT = 1
"""The version of FSDP that transformers 5.20 takes away, whose models cannot be called in parts."""


def spreads_weights(training: Training) -> bool:
    """Tells whether each process holds but a part of the weights: FSDP, or DeepSpeed's stage 3."""
    return bool(_extra(training, "fsdp")) or _zero_stage(training) == _PARTITIONED


def refused_spreading(training: Training) -> tuple[str, str] | None:
    """Returns what of the options that spread weights cannot be had.

    Args:
        training: The block `training`.

    Returns:
        The option's name and the reason; None when all is well.
    """
    fsdp, config = _extra(training, "fsdp"), _extra(training, "fsdp_config")
    if fsdp and training.deepspeed:
        return "fsdp", "fsdp and deepspeed both spread the training: give one of them"
    if config and not fsdp:
        return "fsdp_config", "fsdp_config does nothing by itself: set fsdp: true as well"
    if fsdp and isinstance(config, Mapping):
        given = cast("Mapping[str, object]", config)
        version = given.get("version", given.get("fsdp_version"))
        if str(version) == str(_FLAT):
            return "fsdp_config", (
                "version 1 of FSDP is on its way out of transformers, and its models cannot be "
                "measured: leave version out, which is 2"
            )
    return None


def _extra(training: Training, name: str) -> object:
    return (training.model_extra or {}).get(name)


def _zero_stage(training: Training) -> object:
    zero = (training.deepspeed or {}).get("zero_optimization")
    return zero.get("stage") if isinstance(zero, Mapping) else None
