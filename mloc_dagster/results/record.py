"""`task.json` and `plan.json`: a task's submission and plan; literal secrets are kept apart.

`task.json` and `.submitted` hold `***` in their place: in fields that are marked as secret, and in
URLs of marked fields and of the metadata. The values lie in a folder of the results' root that no
API serves, no task reads and no destination reaches.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import cast
from zlib import crc32

from pydantic import (
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    TypeAdapter,
    ValidationError,
)

from mloc_dagster.errors import DamagedFileError, InputError, TerminalError, UnknownNameError
from mloc_dagster.net import Origin
from mloc_dagster.planning import PLAN_NAME, Plan
from mloc_dagster.redaction import MASK, redact_urls
from mloc_dagster.results.store import Folder, ResultStore
from mloc_dagster.schema import (
    Marker,
    Path,
    Secret,
    marked_in_spec,
    marked_values,
    replaced,
    scalars,
)

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


RECORD_NAME = "task.json"

# Enough to find the neighbour of a mistyped id, without listing a large bucket to the end.
_IDS_TO_COMPARE = 10_000


class TaskRecord(BaseModel):
    """What was submitted.

    Attributes:
        task_id: The task.
        workflow_id: What all tasks of one submission share.
        run_id: The Dagster run.
        template: The effective template: overrides applied, `${…}` references as written, literal
            secrets masked in the file only.
        template_name: Its `metadata.name`.
        node: Which task of the template this is.
        task_type: What it does.
        spec: The node's spec after merging, secrets masked.
        upstream: Task ids of the nodes it depends on, by node name.
        submitted_at: When it was accepted.
        mloc_version: Who accepted it.
        origin: Where it came from, which decides what it may reach (`net.reach`).
        partition: The Dagster partition that it computes; None of a run without one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    task_id: str
    workflow_id: str
    run_id: str
    template: dict[str, JsonValue]
    template_name: str
    node: str
    task_type: str
    spec: dict[str, JsonValue]
    upstream: dict[str, str] = Field(default_factory=dict)
    submitted_at: AwareDatetime
    mloc_version: str
    origin: Origin = "local"
    partition: str | None = None


def write_record(folder: Folder, record: TaskRecord) -> None:
    """Writes `task.json`; it is durable when this returns."""
    public = put_aside(folder.store, folder.name, record.template)
    shown = record.model_copy(update={"template": public, "spec": masked_spec(record.spec)})
    folder.write_bytes(RECORD_NAME, shown.model_dump_json(indent=2).encode() + b"\n")


def read_record(folder: Folder) -> TaskRecord:
    """Reads `task.json`, in which literal secrets are masked.

    Args:
        folder: The task's folder.

    Raises:
        InputError: If there is no such task (the nearest id is named), or its record is not one.
    """
    try:
        data = folder.read_bytes(RECORD_NAME)
    except FileNotFoundError:
        known = islice(folder.store.task_ids(), _IDS_TO_COMPARE)
        raise UnknownNameError(f"task on {folder.store.url}", folder.name, known) from None
    try:
        return TaskRecord.model_validate_json(data)
    except ValidationError as error:
        reason = error.errors(include_url=False)[0]["msg"]
        raise InputError(
            f"{folder.url}/{RECORD_NAME} is no task record ({reason}): it is damaged, or not "
            "mloc's; submit the template again"
        ) from error


def submitted_template(folder: Folder, record: TaskRecord) -> dict[str, JsonValue]:
    """Returns the template of a record that was read, as it was submitted.

    Raises:
        TerminalError: If literal secrets of it are gone.
    """
    return put_back(folder.store, folder.name, record.template)


_SEALED = re.compile(rb'(.*),"crc32":"([0-9a-f]{8})"\}\s*', re.DOTALL)


def write_plan(folder: Folder, plan: Plan) -> None:
    """Writes the plan: with it the input is complete."""
    text = plan.model_dump_json().encode()
    folder.write_bytes(PLAN_NAME, b'%b,"crc32":"%08x"}' % (text[:-1], crc32(text)))


def read_plan(folder: Folder) -> Plan | None:
    """Returns the task's plan, or None before it was planned.

    Raises:
        DamagedFileError: If it is not the plan that was written.
    """
    try:
        data = folder.read_bytes(PLAN_NAME)
    except FileNotFoundError:
        return None
    sealed = _SEALED.fullmatch(data)  # plans of earlier versions have no checksum
    text = data if sealed is None else sealed[1] + b"}"
    if sealed is not None and crc32(text) != int(sealed[2], 16):
        raise damaged(folder, PLAN_NAME, "its checksum is another one")
    try:
        return Plan.model_validate_json(text)
    except ValidationError as error:
        reason = error.errors(include_url=False)[0]["msg"]
        raise damaged(folder, PLAN_NAME, f"it is no plan: {reason}") from error


def plan_of(folder: Folder) -> Plan | None:
    """Returns a task's plan; None before its input was read, and where it is damaged.

    What is known of a task without its plan is shown all the same; running the task says the rest.
    """
    try:
        return read_plan(folder)
    except DamagedFileError:
        return None


def damaged(folder: Folder, name: str, reason: str) -> DamagedFileError:
    """Returns what to raise for a file without which a task's rows cannot be told from others."""
    return DamagedFileError(
        f"{folder.url}/{name} is damaged ({reason}), and tells no more what the task's rows are. "
        f"Start over: mloc run --resume {folder.name} --fresh; over the API, submit the template "
        "again"
    )
