"""Templates that came over the API, as Dagster's processes find them: by the hash of their content.

Their documents lie on the results store, so that every machine builds the same job from a run's
code origin, which holds the hash only. Secrets in them lie apart (`results.literal_secrets`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping

import dagster as dg
from dagster._core.code_pointer import CustomPointer
from pydantic import JsonValue

from mloc_dagster.compile.compiler import CompiledTemplate, compile_mapping
from mloc_dagster.definitions import build_definitions
from mloc_dagster.errors import TerminalError
from mloc_dagster.fleet.dagster.jobs import submitted_pointer
from mloc_dagster.results.literal_secrets import put_aside, put_back
from mloc_dagster.results.store import open_store

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
    """Returns a document, compiled.

    Raises:
        FileNotFoundError: Without it.
        TerminalError: If it is another one than was submitted.
    """
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
