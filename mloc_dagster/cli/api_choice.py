"""Whether a command asks the API, or Dagster and Redis themselves: decided here and nowhere else.

The API is asked where one answers: the one of `MLOC_API_URL`, or that of the stack which is up in
`MLOC_HOME`. Without one the commands look themselves, as they do for a task that the API does not
know: those of `mloc launch` and of Dagster's UI are not in its ledger.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mloc_dagster.client import Address, Client

_ATTEMPTS = 5
"""A few seconds: an API that was killed is up again by then, and somebody waits at a terminal."""

_LOOK_S = 3.0


def ask[T](over_api: Callable[[Client], T], direct: Callable[[], T]) -> T:
    """Asks the API, or looks directly.

    Args:
        over_api: Asks the API.
        direct: Looks without one.
    """
    from mloc_dagster import client as api

    if api.configured_url() is not None:
        with api_client() as client:
            return over_api(client)
    stack = api.stack_api()
    if stack is None or not _answers(stack):
        return direct()
    with _client(stack) as client:
        try:
            return over_api(client)
        except api.NotFoundError:
            return direct()


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
