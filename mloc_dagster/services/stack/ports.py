"""TCP ports: which are free, and who has the others."""

from __future__ import annotations

import random
import socket
import time
from contextlib import closing

import psutil

from mloc_dagster.errors import InputError

_SERVERS = range(20_000, 32_768)
"""Below what systems give to outgoing connections, which could hold a restarted server's port."""


_DYING_S = 5.0
"""How long a port may be held by nobody: a killed process closes its sockets last."""


def is_free(host: str, port: int) -> bool:
    """Returns whether something could listen there now."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with closing(socket.socket(family, socket.SOCK_STREAM)) as listener:
        # What a closed connection leaves behind for a minute keeps no server from listening.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("" if host == "*" else host, port))
            listener.listen(1)
        except OSError:
            return False
    return True


def require_free(host: str, port: int, change: str) -> None:
    """Makes sure that a port is free.

    Args:
        host: Address to listen on.
        port: The port.
        change: What the user may change, in words.

    Raises:
        InputError: If it is taken; names the process when it may be known.
    """
    deadline = time.monotonic() + _DYING_S
    while not is_free(host, port):
        holder = _taken_by(port)
        if holder or time.monotonic() > deadline:
            raise InputError(f"port {port} is taken{holder}; choose another with {change}")
        time.sleep(0.1)


def choose_port(
    host: str,
    wanted: int | None,
    remembered: int | None,
    variable: str,
    *,
    unless: int | None = None,
) -> int:
    """Returns the port that was asked for, else last time's, else a free one.

    Args:
        host: Address to listen on.
        wanted: What the user asked for.
        remembered: What it was last time.
        variable: The setting that asks for a port.
        unless: A port that is promised to somebody else.

    Raises:
        InputError: If the port that was asked for is taken.
    """
    if wanted is not None:
        require_free(host, wanted, variable)
        return wanted
    if remembered is not None and remembered != unless and is_free(host, remembered):
        return remembered
    for port in random.sample(_SERVERS, len(_SERVERS)):
        if port != unless and is_free(host, port):
            return port
    raise InputError(f"no port of {host} is free; choose one with {variable}")


def _taken_by(port: int) -> str:
    try:
        for each in psutil.net_connections(kind="tcp"):
            if each.status == psutil.CONN_LISTEN and each.laddr and each.laddr[1] == port:
                if each.pid is None:
                    return ""
                return f" by {psutil.Process(each.pid).name()} (pid {each.pid})"
    except psutil.Error:
        # Whose it is may be a secret of the system; that it is taken is not.
        return ""
    return ""
