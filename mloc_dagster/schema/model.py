"""Which model a task uses, and the options that transformers loads it with."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Annotated, Any, Literal, Self, cast

from pydantic import (
    ConfigDict,
    Field,
    JsonValue,
    ModelWrapValidatorHandler,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import InitErrorDetails

from mloc_dagster.errors import MlocError, UnknownNameError, nearest_hint
from mloc_dagster.models import BUILTIN_MODELS
from mloc_dagster.schema.base import Annotation, Block
from mloc_dagster.schema.engine_type import EngineType, engine_types, find_engine
from mloc_dagster.schema.markers import FileRef, LibraryOptions, Path, Url

_DEVICE_MAPS = ("auto", "balanced", "balanced_low_0", "sequential", "cpu", "cuda", "mps", "xpu")
_DEVICE = re.compile(r"(?:cuda|mps|xpu|npu|hpu):\d+")

Dtype = Literal["auto", "float32", "float16", "bfloat16"]


AUTO_TEMPLATE, NO_TEMPLATE = "auto", "none"


def _names_a_template(path: Path, value: JsonValue) -> bool:
    return not path  # patterns of somebody's own may take a worker's time for ever


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

    response_template: Annotated[
        str | Mapping[str, JsonValue], LibraryOptions(_names_a_template, itself=True)
    ] = AUTO_TEMPLATE
    """How calls of tools and thoughts are found in answers: one of TRL's response templates by its
    name, such as `qwen3`; a template of transformers' `response_template` as it is; `auto` knows it
    by the model's family; `none` finds neither."""

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


_HUB_ID = re.compile(r"(?!.*(?:--|\.\.))(?:[\w-][\w.-]*/)?[\w][\w.-]{0,95}(?<![.-])", re.ASCII)


_CREDENTIALS_IN_URL = re.compile(r"^[a-z]+://[^/?#]*@", re.IGNORECASE)


class ModelSource(Block):
    """Where the weights come from, or who has them."""

    type: Literal["huggingface", "local", "builtin", "openai"] = "huggingface"
    """`huggingface` (a hub id), `local` (a folder), `builtin` (ships with mloc) or `openai`
    (answered by an endpoint that speaks OpenAI's API)."""

    identifier: Annotated[str, FileRef(anchored=False)] = Field(min_length=1)
    """Hub id, path, the name of a builtin model such as `tiny-chat`, or what an endpoint calls
    it."""

    revision: str | None = Field(default=None, min_length=1)
    """Branch, tag or commit on the hub. Of an endpoint a name of your own for the state of the
    model: with it, answers are reused in later tasks that name the same."""

    base_url: Annotated[str | None, Url(listed=True)] = Field(
        default=None, pattern=r"^(https?://[^\s/]+|\$\{)"
    )
    """Of an endpoint: its address up to `/v1`, such as `https://api.openai.com/v1`."""

    api_key: SecretStr | None = None
    """Of an endpoint: take it from the environment, `${NAME}`. Without it none is sent."""

    trust_remote_code: bool = False
    """Runs code that comes with the weights; the operator must allow it too."""

    @field_validator("revision")
    @classmethod
    def _of_hub(cls, revision: str | None, info: ValidationInfo) -> str | None:
        kind = info.data.get("type", "huggingface")
        if revision is not None and kind in ("local", "builtin"):
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

    @field_validator("base_url")
    @classmethod
    def _bare(cls, url: str | None) -> str | None:
        if url is not None and _CREDENTIALS_IN_URL.match(url):
            raise ValueError("an address with credentials in it: put the key into api_key")
        return url

    @model_validator(mode="after")
    def _reached_or_loaded(self) -> Self:
        if self.type == "openai":
            if self.base_url is None:
                raise ValueError(
                    "a model of type openai needs base_url: the endpoint's address, such as "
                    "https://api.openai.com/v1"
                )
            if self.trust_remote_code:
                raise ValueError("an endpoint runs no code here: remove trust_remote_code")
            return self
        for name in ("base_url", "api_key"):
            if getattr(self, name) is not None:
                raise ValueError(
                    f"a model of type {self.type} has no {name}: it is for endpoints (type: openai)"
                )
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
    """`merge` into the weights, or answer the rows that name it (`request`)."""


class Model(Block):
    """The model of a task, and the options of its engine: a block under the engine's own name."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Any] = Field(init=False)  # pyright: ignore[reportIncompatibleVariableOverride]

    source: ModelSource
    engine: str | None = None
    """Which engine; by default the first of them that can run."""

    adapters: tuple[Adapter, ...] = ()
    """Applied in this order."""

    @classmethod
    def registered_fields(cls) -> Mapping[str, FieldInfo]:
        """Returns the blocks of engines that have no field of their own, and all their names."""
        return _registered_fields(cls, tuple(engine_types().values()))

    def options[OptionsT: Block](self, name: str, kind: type[OptionsT]) -> OptionsT:
        """Returns an engine's block; where the template has none, with every default.

        Args:
            name: The engine's name.
            kind: The class of its options.
        """
        given = self.__dict__.get(name, self.__pydantic_extra__.get(name))
        return given if isinstance(given, kind) else kind()

    def engine_blocks(self) -> dict[EngineType, Block]:
        """Returns the blocks that the template has, in the order in which engines are chosen."""
        given = self.model_fields_set | self.__pydantic_extra__.keys()
        return {
            each: self.options(name, each.options)
            for name, each in engine_types().items()
            if name in given
        }

    @field_validator("engine")
    @classmethod
    def _registered(cls, name: str | None) -> str | None:
        try:
            return name if name is None else find_engine(name).name
        except MlocError as error:
            raise ValueError(str(error)) from error

    @model_validator(mode="wrap")
    @classmethod
    def _engine_options(cls, value: object, handler: ModelWrapValidatorHandler[Self]) -> Self:
        problems: list[InitErrorDetails] = []
        blocks = _blocks(_undeclared(value, cls), problems)
        try:
            model = handler(value)
        except ValidationError as error:
            problems += _details(error)
            raise ValidationError.from_exception_data(cls.__name__, problems) from error
        if problems:
            raise ValidationError.from_exception_data(cls.__name__, problems)
        model.__pydantic_extra__.update(blocks)
        return model


class TrainedModel(Model):
    """The model of a training, and how it is loaded."""

    transformers: TransformersOptions = TransformersOptions()

    @field_validator("source")
    @classmethod
    def _has_weights(cls, source: ModelSource) -> ModelSource:
        if source.type == "openai":
            raise ValueError(
                "an endpoint has no weights that could be trained: take a model of type "
                "huggingface, local or builtin"
            )
        return source


@lru_cache(maxsize=16)
def _registered_fields(
    model: type[Model], engines: tuple[EngineType, ...]
) -> Mapping[str, FieldInfo]:
    about, literal = model.model_fields["engine"].description, cast("Annotation", Literal)
    names: Annotation = literal[tuple(each.name for each in engines)]
    blocks = {
        each.name: FieldInfo(annotation=each.options, default=None, description=each.about)
        for each in engines
        if each.name not in model.model_fields
    }
    return {"engine": FieldInfo(annotation=names, default=None, description=about), **blocks}


def _undeclared(value: object, model: type[Model]) -> dict[str, object]:
    if isinstance(value, Model):
        return dict[str, object](value.__pydantic_extra__)
    if not isinstance(value, dict):
        return {}
    given = cast("dict[str, object]", value)
    return {name: each for name, each in given.items() if name not in model.model_fields}


def _blocks(given: Mapping[str, object], problems: list[InitErrorDetails]) -> dict[str, Block]:
    """Returns blocks as the options of their engines; adds what is wrong to `problems`."""
    found: dict[str, Block] = {}
    for name, value in given.items():
        try:
            found[name] = find_engine(name).options.model_validate(value)
        except ValidationError as error:
            problems += _details(error, name)
        except UnknownNameError:
            problems.append({"type": "extra_forbidden", "loc": (name,), "input": value})
        except MlocError as error:
            reason = {"error": ValueError(str(error))}
            problems.append({"type": "value_error", "loc": (name,), "input": value, "ctx": reason})
    return found


def _details(error: ValidationError, *place: str) -> list[InitErrorDetails]:
    return [
        {
            "type": each["type"],
            "loc": (*place, *each["loc"]),
            "input": each["input"],
            "ctx": each.get("ctx", {}),
        }
        for each in error.errors(include_url=False)
    ]
