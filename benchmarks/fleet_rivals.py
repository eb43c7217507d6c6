"""What the fleet is compared with: stock Dagster, and Dagster with dagster-celery's workers.

Both have a daemon, a code server and a database of their own on the stack's PostgreSQL, and
Dagster's defaults, but for the queue: their daemon looks once a second, as the fleet's does, and
not every five.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

import psutil
import psycopg2
import yaml
from fleet_client import Client
from fleet_rival_location import BROKER, run_config
from fleet_stack import FleetStack, own_environment, until

from mloc_dagster.services import code_answers

LOCATION = Path(__file__).with_name("fleet_rival_location.py")

_STOP_S = 30.0


class Rival:
    """One of them, as processes.

    Args:
        system: `stock` or `celery`.
        folder: Keeps its home and its results.
        library: The templates.
        stack: Lends its PostgreSQL and its Redis.
        workers: Celery workers, each for one step at a time.
    """

    def __init__(
        self, system: str, folder: Path, library: Path, stack: FleetStack, workers: int
    ) -> None:
        self._system = system
        self._home = (folder / system).resolve()
        self._workers = workers if system == "celery" else 0
        self._plan = stack.plan
        self._processes: list[psutil.Popen] = []
        self._stopping = ExitStack()
        self._environment = {
            **own_environment(),
            "DAGSTER_HOME": str(self._home),
            "MLOC_HOME": str(self._home / "mloc"),
            "MLOC_RESULTS_URL": str(self._home / "results"),
            "MLOC_TEMPLATES_DIR": str(library),
            # Another database of the stack's Redis; dagster-celery starts `celery` by its name.
            BROKER: urlsplit(self._plan.redis_url)._replace(path="/1").geturl(),
            "PATH": os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"])),
        }

    def __enter__(self) -> Self:
        self._stopping.callback(self._stop)
        try:
            self._start()
        except BaseException:
            self._stopping.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stopping.close()

    def _start(self) -> None:
        self._home.mkdir()
        url = self._create_database()
        socket, workspace = self._home / "code.sock", self._home / "workspace.yaml"
        server = {"socket": str(socket), "location_name": self._system}
        workspace.write_text(yaml.safe_dump({"load_from": [{"grpc_server": server}]}))
        (self._home / "dagster.yaml").write_text(yaml.safe_dump(_instance(url)))
        target = ("-f", str(LOCATION), "-a", self._system, "-d", str(LOCATION.parent))
        name = ("--location-name", self._system, "--use-python-environment-entry-point")
        serve = (*_python("dagster"), "code-server", "start", "--socket", str(socket))
        self._spawn("code", *serve, *target, *name)
        until(lambda: code_answers(socket), f"{self._system}'s code server")
        # It creates the tables, before the daemon would do so at the same time.
        client = Client(self._home / "client", url, workspace, run_config(self._system))
        self.client = self._stopping.enter_context(client)
        self._spawn("daemon", *_python("dagster._daemon"), "run", "-w", str(workspace))
        self._start_workers()
        until(
            lambda: self.client.instance.get_daemon_statuses()["QUEUED_RUN_COORDINATOR"].healthy,
            f"{self._system}'s daemon",
        )

    def _start_workers(self) -> None:
        config = self._home / "celery.yaml"
        config.write_text(yaml.safe_dump(run_config("celery")))
        command = (str(Path(sys.executable).parent / "dagster-celery"), "worker", "start")
        for number in range(1, self._workers + 1):
            app = ("-A", "dagster_celery.app", "-y", str(config), "-n", f"worker-{number}")
            self._spawn(f"worker-{number}", *command, *app, "--", "--concurrency", "1")

    def _create_database(self) -> str:
        connection = psycopg2.connect(self._plan.postgres_url)
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(f"CREATE DATABASE {self._system}")
        connection.close()
        return urlsplit(self._plan.postgres_url)._replace(path=f"/{self._system}").geturl()

    def _spawn(self, name: str, *command: str) -> None:
        with (self._home / f"{name}.log").open("wb") as log:
            process = psutil.Popen(
                command,
                cwd=self._home,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._processes.append(process)

    def _stop(self) -> None:
        trees = [each for root in self._processes for each in _tree(root)]
        for each in self._processes:
            if each.poll() is None:
                # Each leads a group: the CLI of the Celery workers does not pass signals on.
                os.killpg(each.pid, signal.SIGTERM)
        _, alive = psutil.wait_procs(trees, timeout=_STOP_S)
        for each in alive:
            each.kill()
        psutil.wait_procs(alive, timeout=_STOP_S)


def _tree(root: psutil.Process) -> list[psutil.Process]:
    try:
        return [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return [root]


def _python(module: str) -> tuple[str, ...]:
    return (sys.executable, "-m", module)


def _instance(postgres_url: str) -> dict[str, object]:
    """Returns a dagster.yaml with Dagster's own parts."""
    return {
        "storage": {"postgres": {"postgres_url": postgres_url}},
        "run_coordinator": {
            "module": "dagster.core.run_coordinator",
            "class": "QueuedRunCoordinator",
            "config": {"dequeue_interval_seconds": 1},
        },
        "telemetry": {"enabled": False},
        "nux": {"enabled": False},
    }
