"""`${partition_key}`: the partition that a run computes, in any text of a template."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import JsonValue

from mloc_dagster.compile.compiled import PARTITION, TOKEN
from mloc_dagster.errors import InputError


def fill_partition(mapping: Mapping[str, JsonValue], key: str | None) -> dict[str, JsonValue]:
    """Returns a template with the partition in place of `${partition_key}`.

    Args:
        mapping: The template.
        key: The partition; None where a run has none.

    Raises:
        InputError: If the template names the partition and there is none.
    """
    filled = {name: _filled(value, key) for name, value in mapping.items()}
    if key is None and filled != dict(mapping):
        raise InputError(f"the template names {PARTITION}, and this run has no partition")
    return filled


def _filled(value: JsonValue, key: str | None) -> JsonValue:
    if isinstance(value, dict):
        return {name: _filled(each, key) for name, each in value.items()}
    if isinstance(value, list):
        return [_filled(each, key) for each in value]
    if not isinstance(value, str) or PARTITION not in value:
        return value
    # A partition's key is text, and nothing of it an expression.
    literal = "" if key is None else key.replace("${", "$${")
    return TOKEN.sub(lambda found: literal if found[0] == PARTITION else found[0], value)
