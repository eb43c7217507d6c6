"""`mloc models`."""

from __future__ import annotations

import json

import typer

from mloc_dagster.cli.tables import print_table
from mloc_dagster.models import BUILTIN_MODELS, builtin_model_path


def list_models(*, as_json: bool) -> None:
    """Prints the models that ship, and how a template names them."""
    entries = [{"name": name, "path": str(builtin_model_path(name))} for name in BUILTIN_MODELS]
    if as_json:
        typer.echo(json.dumps(entries))
        return
    print_table(("model", "lies in"), [(each["name"], each["path"]) for each in entries])
    typer.echo("In a template: model.source: {type: builtin, identifier: NAME}")


def show_model_path(name: str) -> None:
    """Prints the folder of a model that ships."""
    typer.echo(str(builtin_model_path(name)))
