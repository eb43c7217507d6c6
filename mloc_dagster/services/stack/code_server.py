"""The code server: Dagster's code locations in one process, for its UI and its daemon.

    python -m mloc_dagster.services.stack.code_server

Dagster's own code server starts a process for each reload, and one more stays in front of it. Here
a reload builds the definitions anew in the process that is there: templates are read again; Python
code is not, as in the workers, which run it.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Sequence
from uuid import uuid4

import grpc
from dagster._core.types.loadable_target_origin import LoadableTargetOrigin
from dagster._core.utils import FuturesAwareThreadPoolExecutor
from dagster._grpc.__generated__ import dagster_api_pb2
from dagster._grpc.server import DagsterApiServer, DagsterGrpcServer, LoadedRepositories
from dagster._utils.error import serializable_error_info_from_exc_info
from dagster._utils.log import configure_loggers

from mloc_dagster.home import stack_layout
from mloc_dagster.services.stack.dagster_home import CODE_LOCATIONS, CodeLocation

_log = logging.getLogger("dagster.code_server")

# Dagster composes graphs on one stack, which all threads share.
_LOADING = threading.Lock()

_ENTRY_POINT: Sequence[str] = (sys.executable, "-m", "dagster")


class LocationServer(DagsterApiServer):
    """Serves one code location, and loads it anew when it is asked to.

    Args:
        location: What it serves.
        threads: Where calls are handled.
        stopping: Set when the process ends.
    """

    def __init__(
        self,
        location: CodeLocation,
        threads: FuturesAwareThreadPoolExecutor,
        stopping: threading.Event,
    ) -> None:
        self._location = location
        self._target = LoadableTargetOrigin(
            executable_path=sys.executable,
            module_name=location.module,
            attribute="defs",
            working_directory=os.getcwd(),  # noqa: PTH109 (Dagster wants text)
        )
        with _LOADING:
            super().__init__(
                server_termination_event=stopping,
                logger=_log,
                server_threadpool_executor=threads,
                loadable_target_origin=self._target,
                lazy_load_user_code=True,
                entry_point=_ENTRY_POINT,
                location_name=location.name,
            )

    def ReloadCode(  # noqa: N802 (gRPC's name)
        self,
        _request: dagster_api_pb2.ReloadCodeRequest,
        _context: grpc.ServicerContext,
    ) -> dagster_api_pb2.ReloadCodeReply:
        """Builds the definitions anew; calls that are under way go on with the old ones."""
        with _LOADING:
            try:
                loaded = LoadedRepositories(
                    self._target,
                    container_image=None,
                    entry_point=_ENTRY_POINT,
                    container_context=None,
                    code_location_name=self._location.name,
                )
            except Exception:  # noqa: BLE001 (templates may fail in any way)
                _log.exception("cannot load %s", self._location.name)
                self._loaded_repositories = None
                error = serializable_error_info_from_exc_info(sys.exc_info())
                self._serializable_load_error = error
            else:
                self._loaded_repositories = loaded
                self._serializable_load_error = None
            # Whoever watches the server asks again when it has another name.
            self._server_id = str(uuid4())
        return dagster_api_pb2.ReloadCodeReply()


def open_location(
    location: CodeLocation, socket: str, stopping: threading.Event
) -> DagsterGrpcServer:
    """Loads a code location; its server listens once it is started.

    Args:
        location: What to serve.
        socket: The path of a unix socket.
        stopping: Set when the process ends.
    """
    threads = FuturesAwareThreadPoolExecutor()
    served = LocationServer(location, threads, stopping)
    return DagsterGrpcServer(stopping, served, _log, threads, socket=socket)


def main() -> None:
    """Serves until SIGTERM or Ctrl-C; what is called then has nothing to lose."""
    configure_loggers(log_level="INFO")
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: stopping.set())
    layout = stack_layout()
    # The library's comes last: when it answers, both do.
    for location in reversed(CODE_LOCATIONS):
        server = open_location(location, str(layout.socket(location.socket)), stopping)
        threading.Thread(target=server.serve, name=location.name, daemon=True).start()
        _log.info("serving %s in process %d", location.name, os.getpid())
    stopping.wait()
    os._exit(0)


if __name__ == "__main__":
    main()
