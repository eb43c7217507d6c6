"""`mloc down`: stops the stack from elsewhere."""

from __future__ import annotations

import typer
from rich.console import Console

from mloc_dagster.services.stack.layout import stack_layout
from mloc_dagster.services.stack.lifecycle import stop_stack
from mloc_dagster.settings import settings


def down() -> None:
    """Stops everything of this home's stack, whatever state it is in.

    Raises:
        TerminalError: If a process can't be stopped.
    """
    layout = stack_layout()
    console = Console(stderr=True, highlight=False)
    with console.status("stopping …") as status:
        count = stop_stack(
            layout,
            settings(),
            lambda line: console.print(line, markup=False),
            lambda names: status.update(f"stopping {', '.join(names)} …"),
        )
    if count:
        typer.echo(f"stopped {layout.home}: {count} processes ended, none is left")
    else:
        typer.echo(f"nothing is up in {layout.home}")
