"""Finding the fleet that a command is about."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mloc_dagster.errors import InputError
from mloc_dagster.settings import settings

if TYPE_CHECKING:
    import dagster as dg

    from mloc_dagster.fleet import FleetEngine

_TAKEN_OVER = ("DAGSTER_HOME", "MLOC_RESULTS_URL", "MLOC_TEMPLATES_DIR")


@dataclass(frozen=True, slots=True)
class Fleet:
    """What the commands ask.

    Attributes:
        instance: Dagster's runs.
        engine: The tickets.
    """

    instance: dg.DagsterInstance
    engine: FleetEngine


@contextmanager
def open_fleet() -> Generator[Fleet]:
    """Opens the fleet of `MLOC_REDIS_URL`, or the stack that is up in `MLOC_HOME`.

    Raises:
        InputError: If there is neither.
        TransientError: If its Redis does not answer.
    """
    if settings().redis_url is None:
        use_stack()
    from mloc_dagster.fleet import open_engine, require_fleet
    from mloc_dagster.services.instance import open_instance

    require_fleet()
    with open_instance() as instance:
        yield Fleet(instance, open_engine())


def use_stack() -> None:
    """Makes this process see what the stack in `MLOC_HOME` was started with.

    Raises:
        InputError: If none is up.
    """
    from mloc_dagster.services.stack.layout import stack_layout
    from mloc_dagster.services.stack.leftovers import supervisor_process
    from mloc_dagster.services.stack.plan import saved_plan

    layout = stack_layout()
    supervisor, plan = supervisor_process(layout), saved_plan(layout)
    if supervisor is None or plan is None:
        raise InputError(
            f"nothing is up in {layout.home}: start the system with `mloc up`, or set"
            " MLOC_REDIS_URL and MLOC_POSTGRES_URL"
        )
    # Where results and templates are was decided when the stack was started, perhaps elsewhere.
    started_with = supervisor.environ()
    os.environ |= {name: started_with[name] for name in _TAKEN_OVER if name in started_with}
    os.environ |= {"MLOC_REDIS_URL": plan.redis_url, "MLOC_POSTGRES_URL": plan.postgres_url}
    settings.cache_clear()
