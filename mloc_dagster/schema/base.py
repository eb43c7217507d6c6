"""The base class of a template's blocks, canonical JSON with digests, and hints at known names."""

from __future__ import annotations

import hashlib
import json
import re
import types
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Annotated, Any, ClassVar, Literal, Union, cast, get_args, get_origin

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, JsonValue, model_validator
from pydantic.fields import FieldInfo

from mloc_dagster.errors import nearest_hint

HALF_A_CHARACTER = "not valid Unicode: half of a surrogate pair is no character"
"""What is said of text that JSON can escape and UTF-8 cannot hold."""


def known_names(wanted: str, names: Sequence[str], kind: str) -> str:
    """Returns `"; did you mean 'x'? columns: x, y"`, without the guess when none is near."""
    listed = f"{kind}: {', '.join(names) if names else 'none'}"
    hint = nearest_hint(wanted, names)
    return f"{hint} {listed}" if hint.endswith("?") else f"; {listed}"


Ingredient = str | bytes | int | None | Sequence["Ingredient"]
"""What a digest is made of."""


def canonical_json(value: JsonValue | Mapping[str, JsonValue]) -> str:
    """Returns equal text for equal values, in which the order of keys counts.

    Order has a meaning: a JSON schema's properties are generated in the order in which they are
    written. Fields of a block come from its type in one order; where a mapping's names are fields
    that somebody wrote in an order of their own, sort these, and nothing below them.
    """
    return json.dumps(value, ensure_ascii=True, separators=(",", ":"))


def digest_of(*ingredients: Ingredient) -> bytes:
    """Returns the sha256 of a list of ingredients; other lists have other digests.

    Each goes in with its length before it, so that no two lists run together to the same bytes.
    """
    digest = hashlib.sha256()
    for each in ingredients:
        digest.update(_framed(each))
    return digest.digest()


def _framed(value: Ingredient) -> bytes:
    if value is None:
        return b"0"
    if isinstance(value, str):
        kind, data = b"s", value.encode("utf-8", "surrogatepass")
    elif isinstance(value, bytes):
        kind, data = b"b", value
    elif isinstance(value, int):
        kind, data = b"i", b"%d" % value
    else:
        kind, data = b"l", b"".join(map(_framed, value))
    return b"%b%d:%b" % (kind, len(data), data)


Annotation = Any
"""A type as it is written in a class body: a class, a union, `Literal[…]`, …"""

_MEMORY = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B?\s*$")
_POWERS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}

MAX_NAME_LENGTH = 100


class Block(BaseModel):
    """A block of YAML: frozen, no unknown keys, each field described by its docstring."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        protected_namespaces=(),
        allow_inf_nan=False,
    )

    block_marker: ClassVar[object] = None
    """A mark of `schema.markers` that holds for everything in the block."""

    @classmethod
    def registered_fields(cls) -> Mapping[str, FieldInfo]:
        """Returns the fields that distributions add to those of the class, by name."""
        return {}

    @model_validator(mode="before")
    @classmethod
    def _no_truth_for_numbers(cls, value: object) -> object:
        # YAML reads `yes` and `on` as true, which pydantic would take for 1; text it refuses.
        if not isinstance(value, dict):
            return value
        given = cast("dict[str, object]", value)
        return {
            key: str(each).lower() if isinstance(each, bool) and key in _numbers(cls) else each
            for key, each in given.items()
        }


@cache
def _numbers(block: type[Block]) -> frozenset[str]:
    """Returns the keys that take a number and nothing else."""
    return frozenset(
        field.alias or name
        for name, field in block.model_fields.items()
        if set(alternatives(field.annotation)) <= {int, float}
    )


def alternatives(annotation: Annotation) -> Iterator[Annotation]:
    """Yields the members of a union, looking through `Annotated`; without None."""
    origin = get_origin(annotation)
    if origin is Annotated:
        yield from alternatives(get_args(annotation)[0])
    elif origin in (Union, types.UnionType):
        for member in get_args(annotation):
            yield from alternatives(member)
    elif annotation is not types.NoneType:
        yield annotation


@cache
def tags_of(block: type[BaseModel]) -> tuple[str, ...]:
    """Returns the values of a block's `type`, when these are fixed."""
    field = block.model_fields.get("type")
    annotation = None if field is None else field.annotation
    return get_args(annotation) if get_origin(annotation) is Literal else ()


def parse_memory(value: object) -> object:
    """Turns `"64Gi"`, `"64GiB"` or `"500MB"` into bytes; numbers pass through.

    Raises:
        ValueError: If a string is not a quantity.
    """
    if not isinstance(value, str):
        return value
    match = _MEMORY.match(value)
    if match is None:
        raise ValueError("expected a quantity of memory such as '32Gi', '32GiB' or '500MB'")
    number, unit, binary = match.groups()
    return int(float(number) * (1024 if binary else 1000) ** _POWERS[unit])


def parse_cpu(value: object) -> object:
    """Turns `"8"` or `"500m"` into cores; numbers pass through.

    Raises:
        ValueError: If a string is not a number of cores.
    """
    if not isinstance(value, str):
        return value
    text = value.strip()
    try:
        return float(text[:-1]) / 1000 if text.endswith("m") else float(text)
    except ValueError:
        raise ValueError("expected a number of cores such as '8' or '500m'") from None


Memory = Annotated[
    int,
    BeforeValidator(parse_memory, json_schema_input_type=int | str),
    Field(ge=1, description="Bytes, or a string such as '32Gi'."),
]
Cores = Annotated[
    float,
    BeforeValidator(parse_cpu, json_schema_input_type=float | str),
    Field(gt=0, description="Cores, or a string such as '8' or '500m'."),
]
Name = Annotated[
    str, Field(pattern=r"^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$", max_length=MAX_NAME_LENGTH)
]
