"""Where the API is when nobody says: one rule, for the clients and for `mloc`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mloc_dagster.settings import settings
from mloc_dagster.wire import tokens_in


@dataclass(frozen=True, slots=True)
class Address:
    """An API.

    Attributes:
        url: Its address.
        token: What it asks for; None leaves it to `MLOC_API_TOKEN`.
    """

    url: str
    token: str | None = None


def configured_url() -> str | None:
    """Returns the address that `MLOC_API_URL` names; None if it names none."""
    return settings().api_url or None


def default_address() -> Address:
    """Returns the API of `MLOC_API_URL`, else that of this home's stack, else this machine's."""
    url = configured_url()
    if url is not None:
        return Address(url)
    from mloc_dagster.services.stack.plan import reachable

    return stack_api() or Address(f"http://{reachable(settings().api_host)}:{settings().api_port}")


def stack_api() -> Address | None:
    """Returns the API of the stack that is up in `MLOC_HOME`; None if it has none.

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
    return Address(plan.api_url, _token(supervisor.environ()))


def _token(started_with: Mapping[str, str]) -> str | None:
    if settings().api_token is not None:
        return None
    file = started_with.get("MLOC_API_TOKEN_FILE")
    if file is None:
        return started_with.get("MLOC_API_TOKEN")
    return next(iter(tokens_in(Path(file).read_text(encoding="utf-8"))), None)
