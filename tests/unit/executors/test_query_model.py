"""What an index keeps of the model that embeds its queries."""

from __future__ import annotations

from typing import Any

import pytest

from mloc_dagster.errors import InputError
from mloc_dagster.executors.retrieval.query_model import query_fields, write_query_model
from mloc_dagster.index import index_folder
from mloc_dagster.schema import Index, Search, spec_of

INDEX = {"engine": "pgvector", "name": "farm"}


def keep(**source: Any) -> bytes:
    write_query_model(
        spec_of(
            {
                "taskType": "index",
                "data": {"type": "upstream", "node": "chunks", "text": "{prompt}"},
                "model": {"source": {"type": "openai", "identifier": "m", **source}},
                "index": INDEX,
                "pooling": {"instruction": "text: ", "dimensions": 8},
                "query_instruction": "query: ",
            }
        )
    )
    folder = index_folder(Index.model_validate(INDEX), "model")
    (name,) = folder.list()
    return folder.read_bytes(name)


def test_queries_are_embedded_as_chunks_but_for_the_instruction() -> None:
    kept = keep(base_url="https://api.example.org/v1", api_key="${MY_KEY}")
    assert b"MY_KEY" in kept
    index = Index.model_validate({**INDEX, "metric": "l2"})
    fields: Any = query_fields(index, Search(top_k=2, filter={"kind": ("a", "b")}))
    assert fields["pooling"] == {"instruction": "query: ", "dimensions": 8}
    assert fields["model"]["source"]["api_key"] == "${MY_KEY}"
    assert fields["taskType"] == "retrieve"
    again = spec_of({**fields, "data": {"type": "list", "items": ["x"]}})
    assert (again.index, again.search.top_k) == (index, 2)
    assert again.search.filter == {"kind": ("a", "b")}


def test_a_literal_key_is_not_kept() -> None:
    kept = keep(base_url="https://api.example.org/v1", api_key="sk-very-secret")
    assert b"very-secret" not in kept
    with pytest.raises(InputError, match=r"literal key, which is not kept.*\$\{NAME\}"):
        query_fields(Index.model_validate(INDEX), Search())
    assert query_fields(Index.model_validate(INDEX), Search(mode="keyword"))
