"""How queries of an index are embedded: an `index` task leaves that beside its index.

So a search needs no more than the index's name, however long ago its task was removed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import cast

from pydantic import BaseModel, ConfigDict, JsonValue, SecretStr, ValidationError

from mloc_dagster.errors import InputError
from mloc_dagster.index import index_folder
from mloc_dagster.net import LOCAL, Origin, Reach, current_reach
from mloc_dagster.redaction import MASK
from mloc_dagster.results import masked_spec
from mloc_dagster.schema import Index, IndexSpec, Search, scalars

_NAME = "queries.json"
_KEPT = ("model", "pooling", "resources", "enforce_cpu")
_NO_MODEL: Mapping[str, JsonValue] = {
    "model": {"source": {"type": "builtin", "identifier": "tiny-embed"}}
}
"""A task has a model; one that searches by words never loads it."""

type Fields = dict[str, JsonValue]


def write_query_model(spec: IndexSpec) -> None:
    """Keeps beside an index how queries of it are embedded: by its model, as its chunks are.

    A literal key of an endpoint is not kept.
    """
    given = spec.model_dump(by_alias=True, exclude_defaults=True, include=set(_KEPT))
    fields = cast("Fields", json.loads(json.dumps(given, default=_revealed)))
    if spec.query_instruction is not None:
        pooling = spec.pooling.model_copy(update={"instruction": spec.query_instruction})
        fields["pooling"] = pooling.model_dump(mode="json", exclude_defaults=True)
    kept = _QueryModel(
        origin=current_reach().origin, spec=masked_spec({"taskType": "index", **fields})
    )
    index_folder(spec.index, "model").write_bytes(_NAME, kept.model_dump_json().encode())


def query_fields(index: Index, search: Search) -> Fields:
    """Returns the spec of a `retrieve` task that searches an index, all but its rows.

    Args:
        index: The index.
        search: How; by words alone no model is needed.

    Raises:
        InputError: If nothing tells which model made the vectors, or its key was not kept.
    """
    given = {
        name: json.loads(json.dumps(each, default=_revealed))
        for name, each in (
            ("index", index.model_dump(exclude_defaults=True)),
            ("search", search.model_dump(exclude_defaults=True)),
        )
    }
    model = _NO_MODEL if search.mode == "keyword" else _kept(index).spec
    return {**model, **given, "taskType": "retrieve"}


def query_reach(index: Index, search: Search) -> Reach:
    """Returns what a search may reach: its model no more than the task that built the index."""
    return LOCAL if search.mode == "keyword" else Reach(_kept(index).origin)


class _QueryModel(BaseModel):
    """What lies beside an index.

    Attributes:
        origin: Of the task that built it, which decides what its model may reach.
        spec: What a spec says of the model.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    origin: Origin
    spec: Fields


def _kept(index: Index) -> _QueryModel:
    folder = index_folder(index, "model")
    words = "; search it by words (mode keyword), which needs no model"
    if not folder.exists(_NAME):
        raise InputError(
            f"nothing tells which model embeds queries for the index {index.name!r}: an `index` "
            f"task that builds it leaves that at {folder.url}{words}"
        )
    try:
        kept = _QueryModel.model_validate_json(folder.read_bytes(_NAME))
    except ValidationError as error:
        raise InputError(
            f"{folder.url}/{_NAME} is damaged; build the index again{words}"
        ) from error
    if any(text == MASK for _, text in scalars(kept.spec)):
        raise InputError(
            f"the model of the index {index.name!r} was given a literal key, which is not kept: "
            "build the index with ${NAME} in its place" + words
        )
    return kept


def _revealed(value: object) -> str:
    return value.get_secret_value() if isinstance(value, SecretStr) else str(value)
