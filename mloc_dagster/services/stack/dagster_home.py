"""The stack's `DAGSTER_HOME`: Dagster's instance with runs on the fleet."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mloc_dagster.services.stack.plan import StackPlan

# A year: a run waits for a run worker as long as it takes. Zero would not do: Dagster reads it as
# "not monitored" and then complains of every run that starts.
_START_TIMEOUT_S = 31_536_000

_SECONDS_TO_CANCEL = 30


@dataclass(frozen=True, slots=True)
class CodeLocation:
    """One code location of a stack.

    Attributes:
        name: As Dagster shows it.
        module: Where its `defs` are.
        socket: Where the code server serves it.
    """

    name: str
    module: str
    socket: str


LIBRARY_LOCATION = "mloc_dagster.definitions"
"""The library's code location in every workspace that mloc writes, and its default name."""

SUBMITTED_LOCATION = "submitted"
"""The code location of the templates that came over the API of late."""

LIBRARY = CodeLocation(LIBRARY_LOCATION, "mloc_dagster.definitions", "code.sock")
SUBMITTED = CodeLocation(
    SUBMITTED_LOCATION, "mloc_dagster.dispatch.submitted_location", "submitted.sock"
)
CODE_LOCATIONS = (LIBRARY, SUBMITTED)

WORKSPACE = "workspace.yaml"
"""What Dagster's UI shows."""

DAEMON_WORKSPACE = "daemon.yaml"
"""What Dagster's daemon looks after: schedules and sensors, which only the library has."""

DAEMON = "mloc_dagster.sensors.daemon"
"""The module that `python -m` runs as Dagster's daemon."""

CODE_SERVER = "mloc_dagster.services.stack.code_server"
"""The module that `python -m` runs as the code server."""

NO_COMPUTE_LOGS = {
    "module": "dagster._core.storage.noop_compute_log_manager",
    "class": "NoOpComputeLogManager",
}
"""What steps print is not captured: that takes two processes a step, and redirects the process."""


def write_dagster_home(plan: StackPlan) -> None:
    """Writes dagster.yaml and the workspaces."""
    import yaml

    folder = plan.layout.dagster_home
    header = "# Written by `mloc up`, anew each time.\n"
    files = {
        "dagster.yaml": fleet_instance(plan.max_concurrent_runs),
        WORKSPACE: {"load_from": [_served(plan, each) for each in CODE_LOCATIONS]},
        DAEMON_WORKSPACE: {"load_from": [_served(plan, LIBRARY)]},
    }
    for name, content in files.items():
        text = header + yaml.safe_dump(content, sort_keys=False)
        (folder / name).write_text(text, encoding="utf-8")


def fleet_instance(max_concurrent_runs: int = -1) -> dict[str, object]:
    """Returns the dagster.yaml of an instance whose runs are on the fleet.

    Args:
        max_concurrent_runs: Runs in progress at a time; -1 is no limit.
    """
    return {
        "storage": {
            "custom": {
                "module": "mloc_dagster.services.postgres",
                "class": "PostgresStorage",
                "config": {},
            }
        },
        "run_launcher": {
            "module": "mloc_dagster.fleet.dagster.run_launcher",
            "class": "FleetRunLauncher",
        },
        "run_coordinator": {
            "module": "dagster.core.run_coordinator",
            "class": "QueuedRunCoordinator",
            "config": {
                "max_concurrent_runs": max_concurrent_runs,
                "dequeue_interval_seconds": 1,
                "dequeue_use_threads": True,
                "dequeue_num_workers": 4,
            },
        },
        "compute_logs": NO_COMPUTE_LOGS,
        "run_monitoring": {
            "enabled": True,
            "poll_interval_seconds": 2,
            "start_timeout_seconds": _START_TIMEOUT_S,
            "cancel_timeout_seconds": _SECONDS_TO_CANCEL,
            # Losing its run worker costs a run nothing.
            "max_resume_run_attempts": 1000,
            # A pool is open again soon after a run that ended without leaving it.
            "free_slots_after_run_end_seconds": 60,
        },
        "sensors": {"use_threads": True, "num_workers": 4},
        "telemetry": {"enabled": False},
        "nux": {"enabled": False},
    }


def _served(plan: StackPlan, location: CodeLocation) -> dict[str, object]:
    socket = str(plan.layout.socket(location.socket))
    return {"grpc_server": {"socket": socket, "location_name": location.name}}
