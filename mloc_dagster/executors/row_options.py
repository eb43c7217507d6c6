"""A row's own options over those of its task."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any, cast, get_origin

from pydantic import TypeAdapter, ValidationError

from mloc_dagster.results.rows import InputRow, SourceRow
from mloc_dagster.schema.canonical import canonical_json
from mloc_dagster.schema.engines import refused_in_inference
from mloc_dagster.schema.inference import Inference, Pooling

RowBlock = Inference | Pooling
"""How a row is answered, or embedded."""

_MOST_KEPT = 1024


class RowOptions:
    """Lays rows' options over the task's block; rows with equal options share one block.

    Args:
        block: The task's.
    """

    def __init__(self, block: RowBlock) -> None:
        self._block = block
        self._given = block.model_dump(mode="json", by_alias=True, exclude_unset=True)
        self._kept: dict[str, RowBlock] = {}

    def of(self, row: InputRow | SourceRow) -> RowBlock:
        """Returns the block that holds for a row.

        Raises:
            ValueError: If an option does not exist, has a value that it cannot have, or
                contradicts another one.
        """
        if not row.options:
            return self._block
        known = canonical_json(dict(sorted(row.options.items())))
        block = self._kept.get(known)
        if block is None:
            try:
                _refuse_other_types(type(self._block), row.options)
                block = type(self._block).model_validate({**self._given, **row.options})
            except ValidationError as error:
                raise ValueError(_in_words(error)) from None
            _refuse_contradictions(block)
            if len(self._kept) >= _MOST_KEPT:
                self._kept.clear()
            self._kept[known] = block
        return block


def _refuse_other_types(block: type[RowBlock], options: Mapping[str, Any]) -> None:
    """Refuses what YAML may be lax about and the API is not: text where a number is wanted."""
    for name, value in options.items():
        field = block.model_fields.get(name)
        if field is None or value is None or isinstance(value, dict):
            continue  # the block says what is wrong with these
        kind = _strict_type(block, name)
        whole = int(value) if isinstance(value, float) and value.is_integer() else value
        several = isinstance(value, str) and get_origin(field.annotation) is tuple
        try:
            kind.validate_json(canonical_json([value] if several else whole), strict=True)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            raise ValueError(f"the row's option {name!r}: {first['msg']}, not {value!r}") from None


@cache
def _strict_type(block: type[RowBlock], name: str) -> TypeAdapter[Any]:
    return TypeAdapter(cast("Any", block.model_fields[name].annotation))


def _refuse_contradictions(block: RowBlock) -> None:
    # The compiler sees the task's own block only.
    for each in refused_in_inference(block, None) if isinstance(block, Inference) else ():
        raise ValueError(f"the row's option {'.'.join(map(str, each.path))!r}: {each.reason}")


def _in_words(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    where = ".".join(str(step) for step in first["loc"])
    value = "" if first["type"] == "extra_forbidden" else f", not {first.get('input')!r}"
    return f"the row's option {where!r}: {first['msg']}{value}"
