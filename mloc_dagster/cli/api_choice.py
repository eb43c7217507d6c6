"""Whether a command asks the API, or Dagster and Redis themselves: decided here and nowhere else.

The API is asked where one answers: the one of `MLOC_API_URL`, or that of the stack which is up in
`MLOC_HOME`. Without one the commands look themselves, as they do for a task that the API does not
know: those of `mloc launch` and of Dagster's UI are not in its ledger.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from mloc_dagster.settings import settings

if TYPE_CHECKING:
    from mloc_dagster.client.client import Client

_ATTEMPTS = 5
"""A few seconds: an API that was killed is up again by then, and somebody waits at a terminal."""

_LOOK_S = 3.0


def ask[T](over_api: Callable[[Client], T], direct: Callable[[], T]) -> T:
    """Asks the API, or looks directly.

    Args:
        over_api: Asks the API.
        direct: Looks without one.
    """
    from mloc_dagster.client.connection import configured_url
    from mloc_dagster.client.errors import NotFoundError

    if configured_url() is not None:
        with api_client() as client:
            return over_api(client)
    stack = _stack_api()
    if stack is None or not _answers(*stack):
        return direct()
    with _client(*stack) as client:
        try:
            return over_api(client)
        except NotFoundError:
            return direct()


@contextmanager
def api_client(attempts: int = _ATTEMPTS, timeout_s: float = 60.0) -> Generator[Client]:
    """Opens the API that commands ask which need one: by default at this machine's port 8000.

    Args:
        attempts: How often a call is tried.
        timeout_s: How long the API may be silent.
    """
    from mloc_dagster.client.connection import configured_url

    stack = None if configured_url() is not None else _stack_api()
    url, token = (None, None) if stack is None else stack
    with _client(url, token, attempts, timeout_s) as client:
        yield client


def _client(
    url: str | None, token: str | None, attempts: int = _ATTEMPTS, timeout_s: float = 60.0
) -> Client:
    from mloc_dagster.client.client import Client

    return Client(url, token, attempts=attempts, timeout_s=timeout_s)


def _answers(url: str, token: str | None) -> bool:
    from mloc_dagster.client.errors import ApiError

    with _client(url, token, 1, _LOOK_S) as client:
        try:
            client.health()
        except ApiError:
            return False
    return True


def _stack_api() -> tuple[str, str | None] | None:
    """Returns address and token of the API of this home's stack; None if it has none.

    Where `MLOC_REDIS_URL` names a fleet, that is meant and not the stack.
    """
    if settings().redis_url is not None:
        return None
    from mloc_dagster.services.stack.layout import stack_layout
    from mloc_dagster.services.stack.leftovers import supervisor_process
    from mloc_dagster.services.stack.plan import saved_plan

    layout = stack_layout()
    plan = saved_plan(layout)
    supervisor = supervisor_process(layout)
    if plan is None or plan.api_url is None or supervisor is None:
        return None
    return plan.api_url, _token(supervisor.environ())


def _token(started_with: dict[str, str]) -> str | None:
    """Returns what the stack's API asks for; None leaves it to this process's own setting."""
    if settings().api_token is not None:
        return None
    file = started_with.get("MLOC_API_TOKEN_FILE")
    if file is None:
        return started_with.get("MLOC_API_TOKEN")
    lines = Path(file).read_text(encoding="utf-8").splitlines()
    words = [line.strip() for line in lines]
    return next((each for each in words if each and not each.startswith("#")), None)
