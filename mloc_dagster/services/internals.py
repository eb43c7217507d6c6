"""Private names of Dagster about its instance, its storages, and what lies in them.

`fleet/dagster/internals.py` has those that make runs and carry them out; nothing else imports from
Dagster what Dagster does not offer. Dagster is pinned to a minor version, and
`tests/contract/test_dagster_internals.py` says of each name what mloc relies on, and what to do
when a new version fails it.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from dagster import DagsterInstance
from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition
from dagster._core.definitions.utils import DISALLOWED_NAMES
from dagster._core.errors import DagsterRunAlreadyExists
from dagster._core.event_api import EventLogCursor
from dagster._core.events import ASSET_CHECK_EVENTS, ASSET_EVENTS, EngineEventData
from dagster._core.execution.stats import StepEventStatus
from dagster._core.instance.ref import InstanceRef
from dagster._core.storage.event_log import SqlEventLogStorage
from dagster._core.storage.event_log.schema import SqlEventLogStorageTable
from dagster._core.storage.local_compute_log_manager import LocalComputeLogManager
from dagster._core.storage.runs import SqlRunStorage
from dagster._core.storage.runs.schema import RunsTable, RunTagsTable
from dagster._core.storage.tags import (
    PARENT_RUN_ID_TAG,
    PRIORITY_TAG,
    RESUME_RETRY_TAG,
    ROOT_RUN_ID_TAG,
    TAGS_TO_MAYBE_OMIT_ON_RETRY,
)
from dagster._core.workspace.context import IWorkspaceProcessContext
from dagster._core.workspace.load_target import WorkspaceFileTarget
from dagster._daemon.controller import create_daemon_of_type, daemon_controller_from_instance
from dagster._daemon.daemon import DaemonIterator, SpanMarker
from dagster._daemon.run_coordinator.queued_run_coordinator_daemon import (
    QueuedRunCoordinatorDaemon,
)
from dagster._serdes import ConfigurableClassData
from dagster._utils.concurrency import ConcurrencySlotStatus
from dagster._utils.error import serializable_error_info_from_exc_info
from dagster._utils.interrupts import capture_interrupts, setup_interrupt_handlers
from dagster_shared.error import SerializableErrorInfo

if TYPE_CHECKING:
    from starlette.applications import Starlette

__all__ = [
    "ASSET_CHECK_EVENTS",
    "ASSET_EVENTS",
    "DISALLOWED_NAMES",
    "PARENT_RUN_ID_TAG",
    "PRIORITY_TAG",
    "RESUME_RETRY_TAG",
    "ROOT_RUN_ID_TAG",
    "TAGS_TO_MAYBE_OMIT_ON_RETRY",
    "ConcurrencySlotStatus",
    "ConfigurableClassData",
    "DaemonIterator",
    "DagsterRunAlreadyExists",
    "EngineEventData",
    "EventLogCursor",
    "IWorkspaceProcessContext",
    "InstanceRef",
    "LocalComputeLogManager",
    "QueuedRunCoordinatorDaemon",
    "RunTagsTable",
    "RunsTable",
    "SerializableErrorInfo",
    "SpanMarker",
    "SqlEventLogStorage",
    "SqlEventLogStorageTable",
    "SqlRunStorage",
    "StepEventStatus",
    "UnresolvedAssetJobDefinition",
    "open_webserver",
    "run_daemons",
    "serializable_error_info_from_exc_info",
]


@contextmanager
def open_webserver(
    instance: DagsterInstance, workspace: Path, poll_ms: int
) -> Generator[Starlette]:
    """Opens Dagster's UI and its GraphQL API as an ASGI application.

    Args:
        instance: What it shows.
        workspace: The file that names its code locations.
        poll_ms: How often the UI asks for news of assets.
    """
    from dagster._core.workspace.context import WorkspaceProcessContext
    from dagster._utils.log import configure_loggers
    from dagster_webserver.app import create_app_from_workspace_process_context
    from dagster_webserver.version import __version__

    configure_loggers(log_level="INFO")
    target = WorkspaceFileTarget(paths=[str(workspace)])
    with WorkspaceProcessContext(instance, target, version=__version__) as context:
        yield create_app_from_workspace_process_context(context, live_data_poll_rate=poll_ms)


def run_daemons(workspace: str, queue: QueuedRunCoordinatorDaemon) -> None:
    """Runs Dagster's daemons on the instance of `DAGSTER_HOME` until SIGTERM or Ctrl-C.

    Args:
        workspace: The file that names the code locations.
        queue: The one that takes runs out of the queue.
    """
    setup_interrupt_handlers()
    with (
        capture_interrupts(),
        DagsterInstance.get() as instance,
        daemon_controller_from_instance(
            instance,
            WorkspaceFileTarget(paths=[workspace]),
            gen_daemons=lambda instance: [
                queue
                if each == QueuedRunCoordinatorDaemon.daemon_type()
                else create_daemon_of_type(each, instance)
                for each in instance.get_required_daemon_types()
            ],
        ) as controller,
    ):
        controller.check_daemon_loop()
