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
from dagster._serdes import ConfigurableClassData
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
    "ConfigurableClassData",
    "DagsterRunAlreadyExists",
    "EngineEventData",
    "EventLogCursor",
    "InstanceRef",
    "LocalComputeLogManager",
    "RunTagsTable",
    "RunsTable",
    "SerializableErrorInfo",
    "SqlEventLogStorage",
    "SqlEventLogStorageTable",
    "SqlRunStorage",
    "StepEventStatus",
    "UnresolvedAssetJobDefinition",
    "open_webserver",
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
    from dagster._core.workspace.load_target import WorkspaceFileTarget
    from dagster._utils.log import configure_loggers
    from dagster_webserver.app import create_app_from_workspace_process_context
    from dagster_webserver.version import __version__

    configure_loggers(log_level="INFO")
    target = WorkspaceFileTarget(paths=[str(workspace)])
    with WorkspaceProcessContext(instance, target, version=__version__) as context:
        yield create_app_from_workspace_process_context(context, live_data_poll_rate=poll_ms)
