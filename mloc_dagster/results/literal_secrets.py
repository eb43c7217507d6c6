"""Secrets that a template holds as text: kept apart from the copies of it that others may see.

`task.json` and `.submitted` hold `***` in their place: in fields that are marked as secret, and in
URLs of marked fields and of the metadata. The values lie in a folder of the results' root that no
API serves, no task reads and no destination reaches.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import cast

from pydantic import JsonValue, TypeAdapter

from mloc_dagster.errors import TerminalError
from mloc_dagster.redaction import MASK, redact_urls
from mloc_dagster.results.store import ResultStore
from mloc_dagster.schema.markers import Marker, Path, Secret, replaced, scalars
from mloc_dagster.schema.template import marked_in_spec, marked_values

FOLDER = ".secrets"
"""Where values lie in the results: one file for a task or a submitted template that has any."""

_REFERENCE = re.compile(r"\$\{[^}]*\}|\b(?:bearer|basic|token)\b|\s+", re.IGNORECASE)
_VALUES = TypeAdapter(dict[str, str])

_Texts = Iterable[tuple[Path, str, Marker | None]]
"""Places of a document, what stands there, and its mark."""


def put_aside(
    store: ResultStore, name: str, document: Mapping[str, JsonValue]
) -> dict[str, JsonValue]:
    """Returns a document without its literal secrets, which are durable when this returns.

    Args:
        store: Where they are kept.
        name: Of what holds the document: a task's id, or the hash of a submitted template.
        document: A template, as it was submitted.
    """
    texts = list(_texts(document))
    public = _without_secrets(document, texts)
    secrets = {
        _pointer(place): text
        for place, text, marker in texts
        if MASK in text or _shown(text, marker) != text
    }
    if secrets:
        store.folder(FOLDER).write_bytes(f"{name}.json", json.dumps(secrets).encode())
    return public


def masked_spec(spec: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    """Returns a task's spec without its literal secrets, to be shown only."""
    found = ((each.path, each.value, each.marker) for each in marked_in_spec(dict(spec)))
    texts = [(place, text, marker) for place, text, marker in found if isinstance(text, str)]
    return _without_secrets(spec, texts)


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
    places = [place for place, text, _ in _texts(document) if MASK in text]
    known: dict[str, str] = _read(store, name) if places else {}
    gone = [each for each in places if _pointer(each) not in known]
    if gone:
        raise _gone(store, name, gone[0])
    return _replaced(document, {each: known[_pointer(each)] for each in places})


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


def _gone(store: ResultStore, name: str, place: Path) -> TerminalError:
    return TerminalError(
        f"{'.'.join(map(str, place))} was a literal secret, and {store.url}/{FOLDER}/{name}.json, "
        "which had it, is gone: submit the template again, better with ${NAME} in its place"
    )


def _texts(document: Mapping[str, JsonValue]) -> Iterator[tuple[Path, str, Marker | None]]:
    """Yields every text of a template that may hold a secret; once for each of its marks."""
    for spec, each in marked_values(document):
        if isinstance(each.value, str):
            yield (*spec, *each.path), each.value, each.marker
    for place, text in scalars(document.get("metadata"), ("metadata",)):
        if isinstance(text, str):
            yield place, text, None


def _without_secrets(document: Mapping[str, JsonValue], texts: _Texts) -> dict[str, JsonValue]:
    changes: dict[Path, JsonValue] = {}
    for place, text, marker in texts:
        shown = _shown(str(changes.get(place, text)), marker)
        if shown != text:
            changes[place] = shown
    return _replaced(document, changes)


def _shown(text: str, marker: Marker | None) -> str:
    if isinstance(marker, Secret):
        return MASK if _REFERENCE.sub("", text) else text
    return redact_urls(text)


def _replaced(
    document: Mapping[str, JsonValue], changes: Mapping[Path, JsonValue]
) -> dict[str, JsonValue]:
    return cast("dict[str, JsonValue]", replaced(dict(document), changes))


def _pointer(place: Path) -> str:
    return "".join(f"/{str(each).replace('~', '~0').replace('/', '~1')}" for each in place)
