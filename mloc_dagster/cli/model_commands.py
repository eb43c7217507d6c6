"""`mloc models`."""

from __future__ import annotations

import json
from dataclasses import asdict

import typer

from mloc_dagster.cli.tables import print_table
from mloc_dagster.models import BUILTIN_MODELS, builtin_model_path


def list_models(*, as_json: bool) -> None:
    """Prints the models that ship, and how a template names them."""
    models = BUILTIN_MODELS.values()
    if as_json:
        entries = [{**asdict(each), "path": str(builtin_model_path(each.name))} for each in models]
        typer.echo(json.dumps(entries, ensure_ascii=False))
        return
    rows = [(each.name, f"{each.parameters:,}", each.description) for each in models]
    print_table(("model", "parameters", "description"), rows, numbers=(1,))
    typer.echo("In a template: model.source: {type: builtin, identifier: NAME}")


def show_model_path(name: str) -> None:
    """Prints the folder of a model that ships."""
    typer.echo(str(builtin_model_path(name)))
