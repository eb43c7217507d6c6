"""How transformers loads weights, for its engine as for every training."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, field_validator, model_validator

from mloc_dagster.errors import nearest_hint
from mloc_dagster.schema.base import Block

_DEVICE_MAPS = ("auto", "balanced", "balanced_low_0", "sequential", "cpu", "cuda", "mps", "xpu")
_DEVICE = re.compile(r"(?:cuda|mps|xpu|npu|hpu):\d+")

Dtype = Literal["auto", "float32", "float16", "bfloat16"]


class TransformersOptions(Block):
    """How transformers loads and batches.

    Names are those of `from_pretrained` and of `BitsAndBytesConfig`.
    """

    device_map: str | None = None
    """`auto`, `cpu`, `cuda:0`, …; by default a GPU when there is one."""

    @field_validator("device_map")
    @classmethod
    def _device(cls, value: str | None) -> str | None:
        if value is None or value in _DEVICE_MAPS or "${" in value or _DEVICE.fullmatch(value):
            return value
        hint = nearest_hint(value, (*_DEVICE_MAPS, "cuda:0"))
        raise ValueError(f"{value!r} is no place for weights{hint}")

    dtype: Dtype = "auto"
    """Precision of the weights; `auto` takes the model's own. By default the `dtype` that another
    engine's block has."""

    attn_implementation: Literal["eager", "sdpa", "flash_attention_2"] | None = None
    """By default the best that the machine has."""

    low_cpu_mem_usage: bool | None = None
    """Load weights piece by piece."""

    trust_remote_code: bool = False
    """As in `model.source`."""

    load_in_8bit: bool = False
    """Weights of 8 bits, on a GPU; needs the extra `quantization`."""

    load_in_4bit: bool = False
    """Weights of 4 bits, on a GPU; needs the extra `quantization`."""

    bnb_4bit_quant_type: Literal["nf4", "fp4"] = "nf4"
    """What 4 bits stand for."""

    bnb_4bit_compute_dtype: Literal["float32", "float16", "bfloat16"] | None = None
    """What 4-bit weights are computed in; by default the precision that the model is loaded in."""

    bnb_4bit_use_double_quant: bool = False
    """Quantise the scales of 4-bit weights, too: 0.4 bits less for each."""

    max_batch_size: int = Field(default=64, ge=1)
    """Rows that are generated together at most."""

    max_batch_tokens: int = Field(default=16384, ge=1)
    """Prompt and new tokens of one batch at most, padding included."""

    @property
    def quantised(self) -> str | None:
        """The option that asks for weights of fewer bits; None where none does."""
        if self.load_in_4bit:
            return "load_in_4bit"
        return "load_in_8bit" if self.load_in_8bit else None

    @model_validator(mode="after")
    def _one_width(self) -> TransformersOptions:
        if self.load_in_4bit and self.load_in_8bit:
            raise ValueError("load_in_4bit and load_in_8bit cannot both be true: remove one")
        given = sorted(name for name in self.model_fields_set if name.startswith("bnb_4bit_"))
        if given and not self.load_in_4bit:
            raise ValueError(f"{given[0]} has no effect without load_in_4bit: true")
        return self
