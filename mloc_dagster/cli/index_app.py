"""The commands about indexes, their arguments and their help."""

from __future__ import annotations

from typing import Annotated

import typer

from mloc_dagster.cli.api_choice import Json

indexes = typer.Typer(help="List, show, search and drop indexes.", no_args_is_help=True)

_Name = Annotated[str, typer.Argument(metavar="NAME", help="The index.", show_default=False)]
_Engine = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", help="pgvector, lancedb, …; needed where two have one of this name."
    ),
]
_Url = Annotated[
    str | None,
    typer.Option(metavar="URL", help="Where it is, if not where mloc keeps them; with --engine."),
]
_Key = Annotated[
    str | None,
    typer.Option(metavar="KEY", help="For --url, by a variable: '${QDRANT_API_KEY}'."),
]


@indexes.command("list")
def _list(as_json: Json = False) -> None:
    """List the indexes where mloc keeps them."""
    from mloc_dagster.cli.index_commands import list_indexes

    raise typer.Exit(list_indexes(as_json=as_json))


@indexes.command("show")
def _show(
    name: _Name,
    engine: _Engine = None,
    url: _Url = None,
    api_key: _Key = None,
    as_json: Json = False,
) -> None:
    """Show an index: its model, its versions, which tasks built them.

    Exit code: 0, 1 (it cannot be reached), 2 (there is no such index).
    """
    from mloc_dagster.cli.index_commands import Place, show

    raise typer.Exit(show(Place(name, engine, url, api_key), as_json=as_json))


@indexes.command("search")
def _search(
    name: _Name,
    query: Annotated[str, typer.Argument(help="What is looked for.", show_default=False)],
    top_k: Annotated[
        int, typer.Option("--top-k", "-k", metavar="N", min=1, max=1000, help="Passages at most.")
    ] = 5,
    mode: Annotated[
        str,
        typer.Option(metavar="M", help="dense (by meaning), keyword (loads no model) or hybrid."),
    ] = "dense",
    filters: Annotated[
        list[str] | None,
        typer.Option(
            "--filter", metavar="KEY=VALUE", help="Only what has this in its payload. Repeatable."
        ),
    ] = None,
    version: Annotated[
        int | None, typer.Option("--version", metavar="N", min=1, help="Not the newest.")
    ] = None,
    engine: _Engine = None,
    url: _Url = None,
    api_key: _Key = None,
    as_json: Json = False,
) -> None:
    """Search an index with the model that built it; workers embed the query where a stack is up.

    Exit code: 0, 1 (it cannot be reached), 2 (bad input, or no such index).
    """
    from mloc_dagster.cli.index_commands import Place, SearchOptions, search

    options = SearchOptions(query, top_k, mode, tuple(filters or ()), version)
    raise typer.Exit(search(Place(name, engine, url, api_key), options, as_json=as_json))


@indexes.command("drop")
def _drop(
    name: _Name,
    engine: _Engine = None,
    url: _Url = None,
    api_key: _Key = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Remove an index with all its versions.

    Exit code: 0, 1 (not confirmed, or it cannot be reached), 2 (there is no such index).
    """
    from mloc_dagster.cli.index_commands import Place, drop

    raise typer.Exit(drop(Place(name, engine, url, api_key), yes=yes))
