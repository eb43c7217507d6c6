"""Literal secrets lie apart from the copies of a template, and come back whole."""

from __future__ import annotations

import json
import uuid
from typing import Any

import pytest

from mloc_dagster.errors import TerminalError
from mloc_dagster.results.record import (
    FOLDER,
    forget,
    put_aside,
    put_back,
    read_record,
    submitted_template,
    write_record,
)
from mloc_dagster.results.store import ResultStore, open_store
from tests.unit.results.test_record import a_record

PLANTED = "planted"


@pytest.fixture
def store() -> ResultStore:
    return open_store(f"memory://{uuid.uuid4().hex}")


def _template(**headers: str) -> dict[str, Any]:
    destination = {"type": "http", "url": "https://there/hook", "headers": headers}
    return {"kind": "EchoTask", "spec": {"output": {"destination": destination}}}


def _document() -> dict[str, Any]:
    qdrant = {"url": "http://q", "api_key": PLANTED}
    stages = [
        {"name": "c", "spec": {"taskType": "rag", "qdrant": qdrant}},
        {"name": "d", "spec": {"data": {"url": f"https://me:{PLANTED}@there/rows.jsonl"}}},
    ]
    document = _template(**{"X-Key~a/b": PLANTED, "Authorization": f"Bearer {PLANTED}"})
    document["spec"]["stages"] = stages
    return {"metadata": {"annotations": {"from": f"https://{PLANTED}@there"}}, **document}


def test_what_is_secret_is_masked_and_comes_back(store: ResultStore) -> None:
    document = _document()
    public = put_aside(store, "t", document)
    assert PLANTED not in json.dumps(public)
    assert public["spec"]["output"]["destination"]["url"] == "https://there/hook"  # type: ignore[index, call-overload]
    assert put_back(store, "t", public) == document
    assert list(put_back(store, "t", public)) == list(document)


@pytest.mark.parametrize("text", ["${KEY}", "Bearer ${KEY}", "token ${KEY}"])
def test_a_reference_stays_as_it_was_written(store: ResultStore, text: str) -> None:
    public = put_aside(store, "t", _template(Authorization=text))
    assert public == _template(Authorization=text)
    assert not store.folder(FOLDER).exists("t.json")


def test_a_secret_beside_a_reference_is_one(store: ResultStore) -> None:
    document = _template(Cookie=f"a={PLANTED}; b=${{KEY}}")
    public = put_aside(store, "t", document)
    assert PLANTED not in str(public)
    assert put_back(store, "t", public) == document


def test_stars_that_somebody_wrote_are_no_secret_that_is_gone(store: ResultStore) -> None:
    document = _template(a=PLANTED)
    document["spec"]["data"] = {"url": "docs/***/a.md"}
    assert put_back(store, "t", put_aside(store, "t", document)) == document


def test_rows_are_left_alone(store: ResultStore) -> None:
    rows = [{"url": f"https://me:{PLANTED}@there"}]
    document: dict[str, Any] = {"spec": {"data": {"type": "list", "items": rows}}}
    assert put_aside(store, "t", document) == document


def test_what_is_gone_or_damaged_is_named_and_not_quoted(store: ResultStore) -> None:
    public = put_aside(store, "t", _template(Cookie=PLANTED))
    store.folder(FOLDER).write_bytes("t.json", b'{"/spec": ["planted"]}')
    with pytest.raises(TerminalError, match=r"\.secrets/t\.json is damaged") as damaged:
        put_back(store, "t", public)
    assert PLANTED not in str(damaged.value)
    forget(store, "t")
    with pytest.raises(TerminalError, match=r"headers\.Cookie was a literal secret.*\$\{NAME\}"):
        put_back(store, "t", public)


def test_a_record_has_none_and_its_template_can_be_had(store: ResultStore) -> None:
    folder = store.task("w-draft")
    spec = _document()["spec"]
    spec |= spec.pop("stages")[0]["spec"]
    record = a_record("w-draft").model_copy(update={"template": _document(), "spec": spec})
    write_record(folder, record)
    assert PLANTED.encode() not in folder.read_bytes("task.json")
    assert submitted_template(folder, read_record(folder)) == _document()
