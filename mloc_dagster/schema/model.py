"""Which model, and how its engine loads it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field, JsonValue, ValidationInfo, field_validator, model_validator

from mloc_dagster.errors import nearest_hint
from mloc_dagster.models import BUILTIN_MODELS
from mloc_dagster.schema.base import Block
from mloc_dagster.schema.markers import FileRef
from mloc_dagster.schema.safe_options import VLLM_OPTIONS

_DEVICE_MAPS = ("auto", "balanced", "balanced_low_0", "sequential", "cpu", "cuda", "mps", "xpu")
_DEVICE = re.compile(r"(?:cuda|mps|xpu|npu|hpu):\d+")

Dtype = Literal["auto", "float32", "float16", "bfloat16"]

_HUB_ID = re.compile(r"(?!.*(?:--|\.\.))(?:[\w-][\w.-]*/)?[\w][\w.-]{0,95}(?<![.-])", re.ASCII)


class ModelSource(Block):
    """Where the weights come from."""

    type: Literal["huggingface", "local", "builtin"] = "huggingface"
    """`huggingface` (a hub id), `local` (a folder) or `builtin` (ships with mloc)."""

    identifier: Annotated[str, FileRef(anchored=False)] = Field(min_length=1)
    """Hub id, path, or the name of a builtin model such as `tiny-chat`."""

    revision: str | None = Field(default=None, min_length=1)
    """Branch, tag or commit on the hub; models of other types have none."""

    trust_remote_code: bool = False
    """Runs code that comes with the weights; the operator must allow it too."""

    @field_validator("revision")
    @classmethod
    def _of_hub(cls, revision: str | None, info: ValidationInfo) -> str | None:
        kind = info.data.get("type", "huggingface")
        if revision is not None and kind != "huggingface":
            raise ValueError(
                f"a model of type {kind} has no revision {revision!r}: its files are what they "
                "are; remove it, or take the model from the hub (type: huggingface)"
            )
        return revision

    @field_validator("identifier")
    @classmethod
    def _known(cls, identifier: str, info: ValidationInfo) -> str:
        kind = None if "${" in identifier else info.data.get("type")
        if kind == "builtin":
            if identifier not in BUILTIN_MODELS:
                hint = nearest_hint(identifier, BUILTIN_MODELS)
                raise ValueError(f"unknown builtin model {identifier!r}{hint}")
            return identifier
        if kind == "huggingface" and _HUB_ID.fullmatch(identifier) is None:
            raise ValueError(
                f"{identifier!r} is no hub id of the form owner/name; "
                "a folder is of type local, a model that ships with mloc of type builtin"
            )
        return identifier


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
    """Precision of the weights; `auto` takes the model's own. By default `model.vllm.dtype`."""

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


class Adapter(Block):
    """A LoRA adapter on top of the model."""

    type: Literal["lora"] = "lora"
    name: str | None = None
    """What rows call it (`model` of an OpenAI batch); by default the last part of its place."""

    path: Annotated[str | None, FileRef()] = None
    """A folder with the adapter."""

    url: Annotated[str | None, FileRef()] = None
    """An archive with the adapter, or a reference to an earlier stage's result."""

    apply: Literal["merge", "request"] = "merge"
    """`merge` into the weights, or send with each `request` (vLLM)."""


class Model(Block):
    """The model of a task and the options of its engine."""

    source: ModelSource
    engine: Literal["vllm", "transformers"] | None = None
    """Which engine; by default vLLM where it can run, else transformers."""

    vllm: Annotated[Mapping[str, JsonValue], VLLM_OPTIONS] = Field(default_factory=dict)
    """vLLM's engine arguments, verbatim. `dtype` and `max_model_len` hold on transformers, too."""

    transformers: TransformersOptions = TransformersOptions()
    adapters: tuple[Adapter, ...] = ()
    """Applied in this order."""
