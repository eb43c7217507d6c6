"""`mloc index`: over the API where one answers, else in this process.

An index at a URL of its own is always opened here: the API opens none but mloc's own.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import typer
from pydantic import ValidationError

from mloc_dagster.cli.api_choice import answering_api
from mloc_dagster.cli.terminal import FAILED, OK
from mloc_dagster.display import count, print_table
from mloc_dagster.errors import InputError, nearest_hint
from mloc_dagster.net import LOCAL

if TYPE_CHECKING:
    from mloc_dagster.schema import Index, RetrievedItem
    from mloc_dagster.wire import IndexSearchReply, IndexSearchRequest, IndexView

_REVISION = re.compile(r"@(?:sha256:)?([0-9a-f]{12})[0-9a-f]*")
_MODES = ("dense", "keyword", "hybrid")


@dataclass(frozen=True, slots=True)
class Place:
    """Which index is meant: by its name alone, or with its engine and where that listens."""

    name: str
    engine: str | None = None
    url: str | None = None
    api_key: str | None = None

    def index(self) -> Index:
        """Returns the index, which need not exist where a URL is given.

        Raises:
            InputError: If there is no such index, or what is given does not fit.
        """
        from mloc_dagster.index import find_index
        from mloc_dagster.schema import Index

        if self.url is None:
            if self.api_key is not None:
                raise InputError("--api-key is for an index at a --url")
            return find_index(self.name, self.engine)
        if self.engine is None:
            raise InputError("--url needs --engine: pgvector, lancedb, qdrant or a registered one")
        key = None if self.api_key is None else LOCAL.filled_in(self.api_key)
        given = {"name": self.name, "engine": self.engine, "url": LOCAL.filled_in(self.url)}
        try:
            return Index.model_validate({**given, "api_key": key})
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            raise InputError(str(first["msg"]).removeprefix("Value error, ")) from None


@dataclass(frozen=True, slots=True)
class SearchOptions:
    """The command line of `mloc index search`; see its help."""

    query: str
    top_k: int
    mode: str
    filters: tuple[str, ...]
    version: int | None

    def request(self, engine: str | None) -> IndexSearchRequest:
        """Returns it as a request.

        Raises:
            InputError: If the mode or a filter is none.
        """
        from mloc_dagster.wire import IndexSearchRequest

        if self.mode not in _MODES:
            raise InputError(f"--mode {self.mode!r} is none{nearest_hint(self.mode, _MODES)}")
        if not self.query.strip():
            raise InputError("the query is empty: say what is looked for")
        given = {"query": self.query, "top_k": self.top_k, "mode": self.mode, "engine": engine}
        try:
            return IndexSearchRequest.model_validate(
                {**given, "version": self.version, "filter": self._filter()}
            )
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            place = ".".join(map(str, first["loc"]))
            raise InputError(f"{place}: {first['msg']}") from None

    def _filter(self) -> Mapping[str, object]:
        found: dict[str, list[object]] = {}
        for each in self.filters:
            key, sign, value = each.partition("=")
            if not (key and sign):
                raise InputError(f"--filter {each!r}: expected KEY=VALUE")
            found.setdefault(key, []).append(_scalar(value))
        return {key: tuple(each) if len(each) > 1 else each[0] for key, each in found.items()}


def list_indexes(*, as_json: bool) -> int:
    """Prints the indexes where mloc keeps them; returns the exit code."""
    from mloc_dagster.tasks import index_views

    with answering_api() as client:
        found = index_views() if client is None else client.indexes().indexes
    if as_json:
        shown = [each.model_dump(mode="json") for each in found]
        typer.echo(json.dumps(shown, ensure_ascii=False))
    elif not found:
        typer.echo("no index yet: `mloc run rag_handbook` builds one", err=True)
    else:
        print_table(
            ("index", "engine", "chunks", "versions", "model", "built"),
            [
                (
                    each.name,
                    each.engine,
                    f"{each.chunks:,}",
                    str(len(each.versions)),
                    _short(each.model),
                    _built(each),
                )
                for each in found
            ],
            numbers=(2, 3),
        )
    return OK


def show(place: Place, *, as_json: bool) -> int:
    """Prints what an index is; returns the exit code.

    Raises:
        InputError: If there is no such index.
    """
    found = _view(place)
    if as_json:
        typer.echo(found.model_dump_json())
        return OK
    typer.echo(f"{found.name}  {found.engine}, {count(found.chunks, 'chunk')}")
    typer.echo(f"model      {found.model or 'not known'}")
    typer.echo(f"vectors    {found.dimension} numbers, {found.metric}")
    if found.versions:
        typer.echo("")
        print_table(
            ("version", "chunks", "built", "by task"),
            [
                (str(each.number), f"{each.chunks:,}", _moment(each.published_at), each.task_id)
                for each in reversed(found.versions)
            ],
            numbers=(0, 1),
        )
    return OK


def search(place: Place, options: SearchOptions, *, as_json: bool) -> int:
    """Prints the passages that fit a query best; returns the exit code.

    Raises:
        InputError: If there is no such index, or it cannot be searched so.
    """
    found = _found(place, options.request(place.engine))
    if as_json:
        typer.echo(found.model_dump_json(exclude={"ok"}))
    elif not found.passages:
        typer.echo("nothing was found", err=True)
    else:
        rows = [_row(each) for each in found.passages]
        print_table(("score", "document", "heading", "characters", "text"), rows, numbers=(0, 3))
    return OK


def drop(place: Place, *, yes: bool) -> int:
    """Removes an index, if the user says so; returns the exit code.

    Raises:
        InputError: If there is no such index, or nobody can be asked.
    """
    from mloc_dagster.index import drop_index

    found = _view(place)
    what = f"{found.name} ({found.engine}, {count(found.chunks, 'chunk')}, " + (
        f"{count(len(found.versions), 'version')})"
    )
    if not found.model and not found.versions:
        raise InputError(f"{found.name} was not built by mloc, which does not remove it")
    if not yes:
        if not sys.stdin.isatty():
            raise InputError(f"say --yes to remove {what}: there is no terminal to ask at")
        if not typer.confirm(f"Remove {what} for good?", err=True):
            return FAILED
    with answering_api() as client:
        if client is None or place.url is not None:
            drop_index(place.index())
        else:
            client.drop_index(place.name, engine=found.engine)
    typer.echo(f"removed {what}")
    return OK


def _view(place: Place) -> IndexView:
    from mloc_dagster.tasks import index_view

    with answering_api() as client:
        if client is None or place.url is not None:
            return index_view(place.index())
        return client.index(place.name, engine=place.engine).index


def _found(place: Place, wanted: IndexSearchRequest) -> IndexSearchReply:
    from mloc_dagster.executors import search_index
    from mloc_dagster.schema import Search
    from mloc_dagster.tasks import index_view, pinned, search_reply

    with answering_api() as client:
        if client is not None and place.url is None:
            return client.search_index(place.name, wanted)
    index = place.index()
    given = wanted.model_dump(exclude={"query", "engine"})
    search = pinned(Search.model_validate(given), index_view(index))
    (passages,) = search_index(index, search, [wanted.query])
    return search_reply(index, search, passages)


def _row(passage: RetrievedItem) -> tuple[str, ...]:
    page = "" if passage.page is None else f", page {passage.page}"
    return (
        "" if passage.score is None else f"{passage.score:.4f}",
        passage.document + page,
        " › ".join(passage.heading),
        f"{passage.start}–{passage.end}",
        " ".join(passage.text.split()),
    )


def _short(model: str) -> str:
    """Returns a model with the first digits of its revision."""
    return _REVISION.sub(r"@\1", model) or "–"


def _built(index: IndexView) -> str:
    return _moment(index.versions[-1].published_at) if index.versions else "–"


def _moment(when: object) -> str:
    from datetime import datetime

    return when.astimezone().strftime("%Y-%m-%d %H:%M") if isinstance(when, datetime) else "–"


def _scalar(text: str) -> object:
    """Returns a number, true or false, or else a text; a number in quotes is a text."""
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value if isinstance(value, bool | int | float | str) else text
