"""Which values of a template the rules of `reach` and `options` hold for: one table of fields."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from pydantic import JsonValue

from mloc_dagster.models import BUILTIN_MODELS
from mloc_dagster.net.options import allowed_option
from mloc_dagster.net.reach import OutOfReachError, Reach
from mloc_dagster.schema.data_address import names_files
from mloc_dagster.schema.legacy import SPELLINGS

Place = tuple[str | int, ...]

READ = frozenset(
    {
        ("data", "url"),
        ("data", "dataset_name"),
        ("image_url", "url"),
        ("source", "identifier"),
        ("reward_model", "identifier"),
        ("adapters", "path"),
        ("adapters", "url"),
        ("load", "path"),
        ("load", "url"),
    }
)
"""Fields that a worker reads: paths, URLs or ids of the hub. Places in lists are left out."""

FETCHED = READ | {("destination", "url")}
"""Fields whose HTTP URLs are contacted."""

_BLOCKS = (("model", "vllm"), ("training",), ("lora",))
_OPERATORS = frozenset({("harness", "include_path")})
"""Options that run code however they are set."""

# Old keys that the compiler drops.
_DROPPED = frozenset(each.old[-2:] for each in SPELLINGS if each.new is None)

FALSE = frozenset({"false", "no", "off", "0", "n", "f", "none", ""})
_TASK_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def field_of(path: Place) -> Place:
    """Returns the last two names of a place, without places in lists."""
    return tuple(each for each in path if isinstance(each, str))[-2:]


def why_refused(reach: Reach, path: Place, value: JsonValue) -> str | None:
    """Returns why a template may not have a value at a place; None if it may.

    Args:
        reach: What it may reach.
        path: The value's place below a document or a spec.
        value: A scalar.
    """
    try:
        _check(reach, path, value)
    except OutOfReachError as error:
        return str(error)
    return None


def check_spec(reach: Reach, spec: JsonValue) -> None:
    """Checks a task's spec whose references are filled in.

    Raises:
        OutOfReachError: For the first value that it may not have.
    """
    if not reach.limited:
        return
    for path, value in scalars(spec):
        why = why_refused(reach, path, value)
        if why is not None:
            raise OutOfReachError(f"spec.{'.'.join(map(str, path))}: {why}")


def scalars(value: JsonValue, path: Place = ()) -> Iterator[tuple[Place, JsonValue]]:
    """Yields every scalar of a value, with its place."""
    if isinstance(value, dict):
        for key, child in value.items():
            yield from scalars(child, (*path, key))
    elif isinstance(value, list):
        for number, child in enumerate(value):
            yield from scalars(child, (*path, number))
    else:
        yield path, value


def _check(reach: Reach, path: Place, value: JsonValue) -> None:
    field = field_of(path)
    if field in _DROPPED:
        return
    if "destination" in path:
        _check_destination(reach, field, value)
    elif field in _OPERATORS:
        name = {"harness": "evaluation.harness", "checkpoint": "checkpoint"}[str(field[0])]
        _check_operators(reach, f"{name}.{field[1]}", value)
    elif field in READ and isinstance(value, str):
        _check_read(reach, value)
    else:
        _check_options(reach, path, value)


def _check_destination(reach: Reach, field: Place, value: JsonValue) -> None:
    if not isinstance(value, str):
        return
    if field == ("destination", "path"):
        check_destination_path(value)
    else:
        reach.check_variables(value)


def check_destination_path(path: str) -> None:
    """Checks a path below the results' root that copies go to.

    Raises:
        OutOfReachError: If it is mloc's own folder, or may become a task's.
    """
    first = next(iter(PurePosixPath(path).parts), "")
    if first.startswith("."):
        raise OutOfReachError(f"{path!r} is a folder that only mloc itself writes to")
    if _TASK_ID.match(first):
        raise OutOfReachError(f"{path!r} is named like a task's own folder, which only it writes")


def _check_operators(reach: Reach, option: str, value: JsonValue) -> None:
    if str(value).lower() not in FALSE and not reach.allows(option):
        raise OutOfReachError(_ask_operator(option))


def _check_read(reach: Reach, text: str) -> None:
    if "${" in text or not text:
        return  # a reference, which is looked at again when it is filled in
    if text not in BUILTIN_MODELS and _is_place(text):
        reach.check_place(text)


def _is_place(text: str) -> bool:
    """Whether a text means a file or a folder, not an id of the hub."""
    if names_files(text) or "::" in text or ":/" in text or "\\" in text:
        return True
    try:
        return Path(text).exists()
    except (OSError, ValueError):  # too long to be a path
        return False


def _check_options(reach: Reach, path: Place, value: JsonValue) -> None:
    for block in _BLOCKS:
        start = _after(path, block)
        if start is None or start >= len(path):
            continue
        name = f"{'.'.join(block)}.{path[start]}"
        if not allowed_option(".".join(block), path[start:], value) and not reach.allows(name):
            raise OutOfReachError(_ask_operator(name))


def _after(path: Place, block: Place) -> int | None:
    """Returns where in a path that follows which stands behind a block's name."""
    for start in range(len(path) - len(block) + 1):
        if path[start : start + len(block)] == block:
            return start + len(block)
    return None


def _ask_operator(option: str) -> str:
    return (
        f"{option} with this value could run code or read files of the worker: a template that "
        f"comes over the API may set it where the operator allows it (MLOC_API_OPTIONS={option})"
    )
