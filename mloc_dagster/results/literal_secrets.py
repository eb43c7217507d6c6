"""Secrets that a template holds as text: kept apart from the copies of it that others may see.

`task.json` and `.submitted` hold `***` in their place. The values lie in a folder of the results'
root that no API serves, no task reads and no destination reaches.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping

from pydantic import JsonValue, TypeAdapter

from mloc_dagster.errors import TerminalError
from mloc_dagster.redaction import MASK, redact_urls
from mloc_dagster.results.store import ResultStore

FOLDER = ".secrets"
"""Where values lie in the results: one file for a task or a submitted template that has any."""

_HEADERS = ("destination", "headers")
_ADDRESSES = frozenset({"url", "path", "base_url", "identifier", "dataset_name"})
_REFERENCE = re.compile(r"\$\{[^}]*\}|\b(?:bearer|basic|token)\b|\s+", re.IGNORECASE)
_VALUES = TypeAdapter(dict[str, str])

Place = tuple[str | int, ...]
Change = Callable[[Place, str], str]


def put_aside(
    store: ResultStore, name: str, document: Mapping[str, JsonValue]
) -> dict[str, JsonValue]:
    """Returns a document without its literal secrets, which are durable when this returns.

    Args:
        store: Where they are kept.
        name: Of what holds the document: a task's id, or the hash of a submitted template.
        document: A template, as it was submitted.
    """
    secrets: dict[str, str] = {}

    def mask(place: Place, text: str) -> str:
        shown = _shown(place, text)
        if shown != text or MASK in text:
            secrets[_pointer(place)] = text
        return shown

    public = _changed(document, mask)
    if secrets:
        store.folder(FOLDER).write_bytes(f"{name}.json", json.dumps(secrets).encode())
    return public


def masked(document: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    """Returns a document without its literal secrets, to be shown only."""
    return _changed(document, _shown)


def put_back(
    store: ResultStore, name: str, document: Mapping[str, JsonValue]
) -> dict[str, JsonValue]:
    """Returns the document that `put_aside` was given.

    Args:
        store: Where its secrets are kept.
        name: The same as then.
        document: What it returned.

    Raises:
        TerminalError: If the secrets are gone.
    """
    known: dict[str, str] | None = None

    def fill(place: Place, text: str) -> str:
        nonlocal known
        if MASK not in text:
            return text
        if known is None:
            known = _read(store, name)
        try:
            return known[_pointer(place)]
        except KeyError:
            raise _gone(store, name, place) from None

    return _changed(document, fill)


def forget(store: ResultStore, name: str) -> None:
    """Removes what was put aside under a name, if there is anything."""
    store.folder(FOLDER).delete(f"{name}.json")


def _read(store: ResultStore, name: str) -> dict[str, str]:
    try:
        return _VALUES.validate_json(store.folder(FOLDER).read_bytes(f"{name}.json"))
    except FileNotFoundError:
        return {}
    except ValueError:  # pydantic's, which would quote them
        raise TerminalError(
            f"{store.url}/{FOLDER}/{name}.json is damaged: submit the template again"
        ) from None


def _gone(store: ResultStore, name: str, place: Place) -> TerminalError:
    return TerminalError(
        f"{'.'.join(map(str, place))} was a literal secret, and {store.url}/{FOLDER}/{name}.json, "
        "which had it, is gone: submit the template again, better with ${NAME} in its place"
    )


def _shown(place: Place, text: str) -> str:
    if place[-1] not in _ADDRESSES:
        return MASK if _REFERENCE.sub("", text) else text
    return redact_urls(text)


def _is_secret(place: Place) -> bool:
    return place[-1] in _ADDRESSES or place[-1] == "api_key" or place[-3:-1] == _HEADERS


def _changed(document: Mapping[str, JsonValue], change: Change) -> dict[str, JsonValue]:
    return {key: _child(value, change, (key,)) for key, value in document.items()}


def _child(value: JsonValue, change: Change, place: Place) -> JsonValue:
    if isinstance(value, str):
        return change(place, value) if _is_secret(place) else value
    # Rows, of which there may be very many.
    if place[-2:] == ("data", "items"):
        return value
    if isinstance(value, dict):
        return {key: _child(each, change, (*place, key)) for key, each in value.items()}
    if isinstance(value, list):
        return [_child(each, change, (*place, number)) for number, each in enumerate(value)]
    return value


def _pointer(place: Place) -> str:
    return "".join(f"/{str(each).replace('~', '~0').replace('/', '~1')}" for each in place)
