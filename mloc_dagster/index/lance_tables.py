"""The tables of an index in LanceDB: what they hold, and how rows become chunks."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import msgspec

from mloc_dagster.errors import InputError, MissingExtraError, TransientError
from mloc_dagster.index.chunk_columns import PASSAGE_COLUMNS, passage_of, payload_json
from mloc_dagster.index.intervals import StoredChunk
from mloc_dagster.index.protocol import IndexVersion
from mloc_dagster.results import Passage, open_store

if TYPE_CHECKING:
    import pyarrow as pa

_FOLDER = "indexes/lance"
_TABLE = ".lance"
VERSIONS = "_versions."
"""What the name of a table of versions begins with; no index' name does."""

_ABOUT = b"mloc"
_ROWS_AT_ONCE = 1_000


def connect(url: str | None) -> Any:
    """Connects to a folder or a bucket; by default that of the results store.

    Raises:
        MissingExtraError: If LanceDB is not installed.
    """
    try:
        import lancedb
    except ImportError as error:
        raise MissingExtraError("an index in LanceDB", "rag") from error
    if url is None:
        url = f"{open_store().url}/{_FOLDER}"
    # What another process has written is there for the next query.
    return lancedb.connect(
        url, read_consistency_interval=timedelta(0), storage_options=_storage_options(url)
    )


def _storage_options(url: str) -> dict[str, str] | None:
    """Returns what Lance does not read from the environment by itself, as fsspec does."""
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if not url.startswith("s3") or not endpoint:
        return None
    return {"aws_endpoint": endpoint, "allow_http": "true"}


def table_names(database: Any) -> list[str]:
    """Returns the names of all tables."""
    found: list[str] = []
    token = None
    while True:
        page = database.list_tables(page_token=token)
        found += page.tables
        token = page.page_token
        if not token:
            return found


def index_names() -> list[str]:
    """Returns the names of mloc's indexes on the results store; LanceDB is not imported for it."""
    listed = open_store().folder(_FOLDER).list()
    names = {each.removesuffix(_TABLE) for each in listed if each.endswith(_TABLE)}
    return sorted(each for each in names if VERSIONS + each in names)


def make_table(database: Any, name: str, schema: pa.Schema) -> None:
    """Makes a table unless it is there."""
    try:
        database.create_table(name, schema=schema)
    except ValueError as error:
        if "already exists" not in str(error):
            raise


def open_table(database: Any, name: str) -> Any | None:
    """Opens a table; None if it is not there.

    Raises:
        TransientError: If the storage cannot be reached.
    """
    try:
        return database.open_table(name)
    except ValueError as error:
        if "was not found" in str(error):
            return None
        raise TransientError(f"LanceDB cannot read {database.uri}: {error}") from error


def chunk_schema(about: Mapping[str, Any]) -> pa.Schema:
    """Returns the columns of chunks, with what their index is."""
    import pyarrow as pa

    fields = [
        ("key", pa.string()),
        ("id", pa.string()),
        ("text", pa.string()),
        ("document", pa.string()),
        ("start", pa.int64()),
        ("end", pa.int64()),
        ("page", pa.int32()),
        ("heading", pa.list_(pa.string())),
        ("payload", pa.string()),
        ("since", pa.int64()),
        ("until", pa.int64()),
        ("added_at", pa.float64()),
        ("vector", pa.list_(pa.float32(), about["dimension"])),
    ]
    return pa.schema(fields, metadata={_ABOUT: msgspec.json.encode(about)})


def version_schema() -> pa.Schema:
    """Returns the columns of versions."""
    import pyarrow as pa

    return pa.schema(
        [
            ("number", pa.int64()),
            ("chunks", pa.int64()),
            ("build", pa.string()),
            ("published_at", pa.string()),
            ("pruned", pa.bool_()),
        ]
    )


def about(table: Any) -> dict[str, Any]:
    """Returns what an index is: its `dimension`, `metric` and `model`.

    Raises:
        InputError: If mloc did not make the table.
    """
    found = (table.schema.metadata or {}).get(_ABOUT)
    if found is None:
        raise InputError(f"the table {table.name!r} is no index of mloc: give it another name")
    return msgspec.json.decode(found)


def identity(about: Mapping[str, Any]) -> tuple[int, str, str]:
    """Returns what must not differ between those who use an index."""
    return about["dimension"], about["metric"], about["model"]


def chunk_rows(chunks: Sequence[Passage], vectors: Any, schema: pa.Schema) -> pa.Table:
    """Returns rows of chunks that no version has."""
    import pyarrow as pa

    values = pa.array(vectors.reshape(-1))
    columns = {
        **{name: [getattr(each, name) for each in chunks] for name in PASSAGE_COLUMNS},
        "key": [each.id for each in chunks],
        "payload": [payload_json(each) for each in chunks],
        "since": [None] * len(chunks),
        "until": [None] * len(chunks),
        "added_at": [time.time()] * len(chunks),
        "vector": pa.FixedSizeListArray.from_arrays(values, vectors.shape[1]),
    }
    arrays = [pa.array(columns[each.name], each.type) for each in schema]
    return pa.Table.from_arrays(arrays, schema=schema)


def version_rows(version: IndexVersion) -> pa.Table:
    """Returns the row of a version."""
    import pyarrow as pa

    row = {
        "number": version.number,
        "chunks": version.chunks,
        "build": version.build,
        "published_at": version.published_at,
        "pruned": False,
    }
    return pa.Table.from_pylist([row], schema=version_schema())


def copied_rows(rows: pa.Table, number: int) -> pa.Table:
    """Returns chunks that come back: stored anew, from a version on."""
    import pyarrow as pa

    fresh = {
        "key": [f"{id}\n{number}" for id in rows["id"].to_pylist()],
        "since": [number] * len(rows),
        "until": [None] * len(rows),
    }
    for name, values in fresh.items():
        place = rows.schema.get_field_index(name)
        field = rows.schema.field(name)
        rows = rows.set_column(place, field, pa.array(values, field.type))
    return rows


def mark(chunks: Any, marks: Mapping[str, tuple[int | None, int | None]]) -> None:
    """Sets the intervals of chunks, in one commit."""
    import pyarrow as pa

    rows = pa.table(
        {
            "key": pa.array(list(marks), pa.string()),
            "since": pa.array([since for since, _ in marks.values()], pa.int64()),
            "until": pa.array([until for _, until in marks.values()], pa.int64()),
        }
    )
    chunks.merge_insert("key").when_matched_update_all().execute(rows)


def insert(table: Any, key: str, rows: pa.Table) -> None:
    """Adds those rows whose key is not there yet."""
    table.merge_insert(key).when_not_matched_insert_all().execute(rows)


def stored_chunks(table: Any) -> Iterator[StoredChunk]:
    """Streams what is stored, without texts and vectors."""
    query = table.search().select(["key", "id", "since", "until"])
    for batch in query.to_batches(batch_size=_ROWS_AT_ONCE):
        for row in batch.to_pylist():
            yield StoredChunk(**row)


def in_version(number: int) -> str:
    """Returns the condition of chunks that a version has."""
    return f"since <= {number} AND (until IS NULL OR until > {number})"


def among(column: str, values: Iterable[str]) -> str:
    """Returns the condition of a column that holds one of some values."""
    listed = ", ".join("'" + each.replace("'", "''") + "'" for each in values)
    return f"{column} IN ({listed})"


def passages_in(rows: pa.Table) -> Iterator[Passage]:
    """Returns the chunks of rows."""
    columns = (rows[name].to_pylist() for name in PASSAGE_COLUMNS)
    return (passage_of(row) for row in zip(*columns, strict=True))
