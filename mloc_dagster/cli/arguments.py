"""Arguments that several commands share, and what the shell completes in them."""

from __future__ import annotations

from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]
Wait = Annotated[bool, typer.Option("--wait", help="Return when the run has ended.")]
NoData = Annotated[
    bool, typer.Option("--no-data", help="Do not look at the data files before anything runs.")
]


_LATEST = 100
_PATIENCE_S = 0.7
"""Who presses Tab waits no longer than this."""


def complete_task_ids(incomplete: str) -> list[tuple[str, str]]:
    """Returns ids that begin so, each with what it is; none if no API answers at once."""
    from mloc_dagster.cli.api_choice import api_client
    from mloc_dagster.errors import MlocError

    try:
        with api_client(attempts=1, timeout_s=_PATIENCE_S) as client:
            found = list(client.list(limit=_LATEST))
    except (MlocError, OSError):
        return []  # a message would land in the middle of the user's command
    return [
        (each.task_id, f"{each.template} {each.status.value}")
        for each in found
        if each.task_id.startswith(incomplete)
    ]


TaskOrRun = Annotated[
    str,
    typer.Argument(
        metavar="ID",
        help="Of a task, or what all tasks of a template share.",
        show_default=False,
        autocompletion=complete_task_ids,
    ),
]
TaskId = Annotated[
    str,
    typer.Argument(
        metavar="ID", help="Of a task.", show_default=False, autocompletion=complete_task_ids
    ),
]
