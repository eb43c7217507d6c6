"""The Dagster instance of mloc's own commands: the one that `dagster dev` uses here."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import dagster as dg

from mloc_dagster.home import private_home
from mloc_dagster.services.internals import InstanceRef, LocalComputeLogManager
from mloc_dagster.services.stack.dagster_home import NO_COMPUTE_LOGS, fleet_instance
from mloc_dagster.settings import settings

if TYPE_CHECKING:
    from mloc_dagster.services.internals import ConfigurableClassData


class ComputeLogs(LocalComputeLogManager):
    """Dagster's local compute logs; dagster.yaml itself can't say where `MLOC_HOME` is."""

    @classmethod
    def config_type(cls) -> dict[str, object]:
        """Takes no configuration in dagster.yaml: the folder is a setting of mloc."""
        return {}

    @classmethod
    def from_config_value(
        cls, inst_data: ConfigurableClassData | None, config_value: object
    ) -> ComputeLogs:
        """Builds the manager when Dagster loads its instance."""
        return cls(str(settings().home.resolve() / "compute_logs"), inst_data=inst_data)


_PACKAGE = Path(__file__).parent.parent

# A connection is kept for each thread that writes events; Dagster opens one per call otherwise.
_POOL = {"statement_timeout": 60_000, "pool_recycle": 3_600, "max_overflow": 20}


def open_instance(*, in_threads: bool = False) -> dg.DagsterInstance:
    """Opens the instance of `DAGSTER_HOME`, or that of this folder's (or our own) dagster.yaml.

    Args:
        in_threads: Whether several runs are executed at a time, in threads of this process.
    """
    instance = _open({"compute_logs": NO_COMPUTE_LOGS})
    if in_threads:
        _leave_logging_alone(instance)
    return instance


def _open(overrides: dict[str, object]) -> dg.DagsterInstance:
    if os.environ.get("DAGSTER_HOME"):
        instance = dg.DagsterInstance.get()
    else:
        home = settings().home.resolve()
        private_home(home)
        ref = InstanceRef.from_dir(str(home), config_dir=str(_config_dir()), overrides=overrides)
        instance = dg.DagsterInstance.from_ref(ref)
    pool_connections(instance)
    return instance


def open_fleet_instance() -> dg.DagsterInstance:
    """Opens the instance with runs on the fleet, for a process that executes several in threads.

    It is that of `DAGSTER_HOME` under `mloc up`; a worker on another machine needs no such folder.
    """
    instance = _open(fleet_instance())
    _leave_logging_alone(instance)
    return instance


def _leave_logging_alone(instance: dg.DagsterInstance) -> None:
    """Makes runs leave Python's logging as it is.

    Dagster configures it anew for each run, also when dagster.yaml asks for nothing, and
    `logging.config` closes every handler under a lock that a log line of another thread may hold:
    runs would wait for one another forever.
    """
    instance.get_yaml_python_handlers = list  # type: ignore[method-assign]


def pool_connections(instance: dg.DagsterInstance) -> None:
    """Makes an instance keep its connections; for processes that live long."""
    instance.optimize_for_webserver(**_POOL)


def _config_dir() -> Path:
    for folder in (Path.cwd(), _PACKAGE, _PACKAGE.parent):
        if (folder / "dagster.yaml").is_file():
            return folder
    raise FileNotFoundError("dagster.yaml ships with mloc, and is missing")
