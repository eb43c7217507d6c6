"""Where a stack keeps what it is made of."""

from __future__ import annotations

import hashlib
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import psutil

from mloc_dagster.settings import settings

# A unix socket's path has room for 107 bytes. The longest name here, `/submitted.sock`, takes 15;
# supervisord appends its pid to its own, `/rpc.sock`, while it creates it.
_MAX_SOCKET_FOLDER = 85


@dataclass(frozen=True, slots=True)
class StackLayout:
    """The files of one stack.

    Args:
        home: The absolute `MLOC_HOME`; the stack's identity.
    """

    home: Path

    @property
    def supervisor(self) -> Path:
        """Generated configuration, pid file and state; only its owner may look."""
        return self.home / "supervisor"

    @property
    def config(self) -> Path:
        """What supervisord reads."""
        return self.supervisor / "supervisord.conf"

    @property
    def pid_file(self) -> Path:
        """The pid of supervisord."""
        return self.supervisor / "supervisord.pid"

    @property
    def plan(self) -> Path:
        """The addresses of the stack, as `StackPlan` has them; holds passwords."""
        return self.supervisor / "stack.json"

    @property
    def password(self) -> Path:
        """What the embedded Redis and PostgreSQL ask for."""
        return self.supervisor / "password"

    @property
    def worker_password(self) -> Path:
        """What they ask workers for, who may do less."""
        return self.supervisor / "worker_password"

    @property
    def logs(self) -> Path:
        """One rotating log per component."""
        return self.home / "logs"

    @property
    def supervisor_log(self) -> Path:
        """What supervisord did."""
        return self.logs / "supervisord.log"

    @property
    def redis(self) -> Path:
        """Redis' append-only file and its configuration."""
        return self.home / "redis"

    @property
    def postgres(self) -> Path:
        """PostgreSQL's data."""
        return self.home / "postgres"

    @property
    def dagster_home(self) -> Path:
        """dagster.yaml and workspace.yaml of the stack."""
        return self.home / "dagster"

    def log_of(self, component: str) -> Path:
        """The log of a component."""
        return self.logs / f"{component}.log"

    def socket(self, name: str) -> Path:
        """A unix socket; in the temporary folder if the path under `home` would be too long."""
        # All of them lie in one folder, however long each one's name is.
        if len(os.fsencode(self.supervisor)) <= _MAX_SOCKET_FOLDER:
            return self.supervisor / name
        digest = hashlib.sha256(os.fsencode(self.home)).hexdigest()[:12]
        return Path(tempfile.gettempdir()) / f"mloc-{os.getuid()}-{digest}" / name

    def create(self) -> None:
        """Creates the folders, for their owner only.

        Raises:
            PermissionError: If somebody else owns the folder of the sockets.
        """
        private_home(self.home)
        own = (self.logs, self.redis, self.dagster_home, self.supervisor)
        for folder in (*own, self.socket("x").parent):
            folder.mkdir(mode=0o700, exist_ok=True)
            if folder.is_symlink() or folder.stat().st_uid != os.getuid():
                raise PermissionError(f"{folder} belongs to somebody else")
            folder.chmod(0o700)


def private_home(home: Path) -> None:
    """Creates a home that only its owner may look into.

    Root's may be passed through, with names that one must know: the embedded PostgreSQL runs as
    another user, in a folder of its own there.
    """
    home.mkdir(parents=True, exist_ok=True)
    home.chmod(0o711 if os.geteuid() == 0 else 0o700)


def stack_layout() -> StackLayout:
    """Returns the layout under this process's `MLOC_HOME`."""
    return StackLayout(settings().home.resolve())


def supervisor_process(layout: StackLayout) -> psutil.Process | None:
    """Returns the supervisor of a home; None when its pid file is stale or missing."""
    try:
        process = psutil.Process(int(layout.pid_file.read_text(encoding="utf-8")))
        running = str(layout.config) in process.cmdline()
    except (FileNotFoundError, ValueError, psutil.Error):
        return None
    return process if running and process.status() != psutil.STATUS_ZOMBIE else None
