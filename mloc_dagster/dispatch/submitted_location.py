"""Templates that came over the API, for Dagster: stored by content, and listed as a code location.

Their documents lie on the results store, so that every machine builds the same job from a run's
code origin, which holds the hash only. Secrets in them lie apart (`results.record`).

No run needs it, each names its own template; it is for people, who find graphs,
lineage and re-execution through it.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from functools import lru_cache

import dagster as dg
from pydantic import JsonValue
from sqlalchemy import select

from mloc_dagster.assets import job_name
from mloc_dagster.compile import CompiledTemplate, compile_mapping
from mloc_dagster.definitions import build_definitions, fitting, loads
from mloc_dagster.errors import TerminalError
from mloc_dagster.fleet import CONTENT_TAG, CustomPointer, submitted_pointer
from mloc_dagster.results import open_store, put_aside, put_back
from mloc_dagster.services import RunTagsTable, SqlRunStorage, open_instance

FOLDER = ".submitted"
"""Where documents lie in the results."""


def keep_document(content_hash: str, document: Mapping[str, JsonValue]) -> None:
    """Makes a document available to all machines; it is durable when this returns."""
    store = open_store()
    folder, name = store.folder(FOLDER), f"{content_hash}.json"
    if not folder.exists(name):
        public = put_aside(store, content_hash, document)
        folder.write_bytes(name, json.dumps(public).encode())


def kept_document(content_hash: str) -> Mapping[str, JsonValue]:
    """Returns a document.

    Raises:
        FileNotFoundError: Without it.
        TerminalError: If its literal secrets are gone.
    """
    store = open_store()
    public = json.loads(store.folder(FOLDER).read_bytes(f"{content_hash}.json"))
    return put_back(store, content_hash, public)


def kept_template(content_hash: str) -> CompiledTemplate:
    """Returns a document, compiled; a process compiles each once.

    Raises:
        FileNotFoundError: Without it.
        TerminalError: If it is another one than was submitted.
    """
    return _kept_template(open_store().url, content_hash)


@lru_cache(maxsize=128)
def _kept_template(results_url: str, content_hash: str) -> CompiledTemplate:
    compiled = compile_mapping(kept_document(content_hash))
    if compiled.content_hash != content_hash:
        raise TerminalError(f"{FOLDER}/{content_hash}.json is not the template that was submitted")
    return compiled


def load(content_hash: str) -> dg.RepositoryDefinition:
    """Builds the repository with the job of one template; code origins name this function."""
    definitions = build_definitions([kept_template(content_hash)])
    return definitions.get_repository_def()


def pointer_of(content_hash: str) -> CustomPointer:
    """Returns how Dagster's processes find the job of a template."""
    return submitted_pointer(content_hash)


_log = logging.getLogger("dagster.mloc")

MOST_TEMPLATES = 100

_RUNS_LOOKED_AT = 2_000
"""The newest runs in which templates are searched: people submit the same ones again and again."""


def latest_hashes(instance: dg.DagsterInstance) -> tuple[str, ...]:
    """Returns the contents of which runs were made last, the newest first; a hundred at most."""
    storage = instance.run_storage
    if not isinstance(storage, SqlRunStorage):
        return ()
    newest = (
        select(RunTagsTable.c.value)
        .where(RunTagsTable.c.key == CONTENT_TAG)
        .order_by(RunTagsTable.c.id.desc())
        .limit(_RUNS_LOOKED_AT)
    )
    with storage.connect() as connection:
        found = dict.fromkeys(str(value) for (value,) in connection.execute(newest))
    return tuple(found)[:MOST_TEMPLATES]


def latest_templates(hashes: Sequence[str]) -> list[CompiledTemplate]:
    """Returns templates by the hashes of their contents, the newest of each name.

    Args:
        hashes: The newest first; what cannot be read or compiled any more is left out.
    """
    found: dict[str, CompiledTemplate] = {}
    for each in hashes:
        try:
            compiled = kept_template(each)
        except Exception as error:  # noqa: BLE001 (one must not take the others down)
            _log.warning("left out: the submitted template %s: %s", each[:12], error)
            continue
        found.setdefault(job_name(compiled), compiled)
    return list(found.values())


def _fits(templates: Sequence[CompiledTemplate]) -> bool:
    return loads(_built(templates))


def _built(templates: Sequence[CompiledTemplate]) -> dg.Definitions:
    return build_definitions(
        templates, tags_of=lambda each: {CONTENT_TAG: each.content_hash}, schedules=False
    )


@dg.definitions
def defs() -> dg.Definitions:
    """Builds the code location when Dagster loads it."""
    with open_instance() as instance:
        hashes = latest_hashes(instance)
    return _built(fitting(latest_templates(hashes), _fits))
