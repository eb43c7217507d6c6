"""Which API a command asks; arguments that commands share.

It is the one of `MLOC_API_URL`, or that of the stack which is up in `MLOC_HOME`. Without one a
command serves itself (`cli/local_api.py`).
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from mloc_dagster.client import Address, Client


_ATTEMPTS = 5
"""A few seconds: an API that was killed is up again by then, and somebody waits at a terminal."""

_LOOK_S = 3.0


@contextmanager
def open_api(task: str | None = None) -> Generator[Client]:
    """Opens the API that a command asks, whichever there is.

    Args:
        task: What the command reads, which this command's own API finds wherever its run wrote.
    """
    from mloc_dagster.cli.local_api import local_api

    with answering_api() as client:
        if client is not None:
            yield client
            return
    with local_api(task) as client:
        yield client


@contextmanager
def answering_api() -> Generator[Client | None]:
    """Opens the API of `MLOC_API_URL`, or of this home's stack; None where that does not answer."""
    from mloc_dagster.client import configured_url, stack_api

    if configured_url() is not None:
        with api_client() as client:
            yield client
        return
    stack = stack_api()
    if stack is None or not _answers(stack):
        yield None
        return
    with _client(stack) as client:
        yield client


@contextmanager
def api_client(attempts: int = _ATTEMPTS, timeout_s: float = 60.0) -> Generator[Client]:
    """Opens the API that commands ask which need one: by default the client's own.

    Args:
        attempts: How often a call is tried.
        timeout_s: How long the API may be silent.
    """
    from mloc_dagster.client import Client

    with Client(attempts=attempts, timeout_s=timeout_s) as client:
        yield client


def _client(stack: Address, attempts: int = _ATTEMPTS, timeout_s: float = 60.0) -> Client:
    from mloc_dagster.client import Client

    return Client(stack.url, stack.token, attempts=attempts, timeout_s=timeout_s)


def _answers(stack: Address) -> bool:
    from mloc_dagster.client import ApiError

    with _client(stack, 1, _LOOK_S) as client:
        try:
            client.health()
        except ApiError:
            return False
    return True


Json = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]
Wait = Annotated[bool, typer.Option("--wait", help="Return when the run has ended.")]
Partition = Annotated[
    str | None, typer.Option(metavar="KEY", help="Which one, of a template with partitions.")
]
NoData = Annotated[
    bool, typer.Option("--no-data", help="Do not look at files before anything runs.")
]


_LATEST = 100
_PATIENCE_S = 0.7
"""Who presses Tab waits no longer than this."""


def complete_task_ids(incomplete: str) -> list[tuple[str, str]]:
    """Returns ids that begin so, each with what it is; none if no API answers at once."""
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
