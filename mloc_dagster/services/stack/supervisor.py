"""supervisord: starting it, asking it, stopping it."""

from __future__ import annotations

import re
import subprocess
import sys
import time
import xmlrpc.client
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from http.client import HTTPException
from pathlib import Path
from typing import cast

from pydantic import BaseModel, ConfigDict

from mloc_dagster.errors import TerminalError
from mloc_dagster.home import StackLayout, supervisor_process

_SUPERVISORD = "mloc_dagster.services.stack.supervisord"
# It loads what components share before it answers; a machine may be slow ten times over.
_START_S = 120.0
_LOOK_EVERY_S = 0.1
_SPAWNED = re.compile(r"spawned: '([^']+)' with pid (\d+)")
_STOPPED = re.compile(r"stopped: (\S+) \(")
_STARTED = "supervisord started with pid"
_LOG_BACKUPS = 5


class ComponentState(BaseModel):
    """One supervised process.

    Attributes:
        name: Which.
        state: As supervisord has it: STARTING, RUNNING, BACKOFF, STOPPING, STOPPED, EXITED.
        pid: None while none runs.
        uptime_s: Seconds since it was started last; 0 while none runs.
        restarts: How often it was started again.
        log: Its log file.
        problem: Why it could not be started; empty if it could.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    state: str
    pid: int | None
    uptime_s: float
    restarts: int
    log: Path
    problem: str = ""


class SupervisorGone(TerminalError):
    """The supervisor does not answer."""


def start_supervisor(
    layout: StackLayout, environment: Mapping[str, str]
) -> subprocess.Popen[bytes]:
    """Starts supervisord in a session of its own and returns when it answers.

    Raises:
        TerminalError: If it does not start; carries what it said.
    """
    said = layout.logs / "supervisord.out"
    with said.open("wb") as output:
        process = subprocess.Popen(  # noqa: S603 (our own interpreter)
            [sys.executable, "-m", _SUPERVISORD, "-c", str(layout.config)],
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    deadline = time.monotonic() + _START_S
    while True:
        try:
            component_states(layout)
        except SupervisorGone:
            if process.poll() is not None or time.monotonic() > deadline:
                process.kill()
                process.wait()
                text = said.read_text(encoding="utf-8", errors="replace").strip()
                raise TerminalError(f"the supervisor did not start: {text or said}") from None
        else:
            return process
        time.sleep(_LOOK_EVERY_S)


def component_states(layout: StackLayout) -> list[ComponentState]:
    """Returns every component, in the order of starting.

    Raises:
        SupervisorGone: If no supervisor answers.
    """
    answer = _ask(layout, "supervisor.getAllProcessInfo")
    starts = _starts(layout)
    infos = cast("Sequence[dict[str, object]]", answer)
    return [_state(info, starts) for info in infos]


def _state(info: Mapping[str, object], starts: Mapping[str, int]) -> ComponentState:
    name, pid = str(info["name"]), int(str(info["pid"]))
    now, start = float(str(info["now"])), float(str(info["start"]))
    return ComponentState(
        name=name,
        state=str(info["statename"]),
        pid=pid or None,
        uptime_s=max(0.0, now - start) if pid else 0.0,
        restarts=max(0, starts.get(name, 0) - 1),
        log=Path(str(info["stdout_logfile"])),
        problem=str(info["spawnerr"]),
    )


def ask_to_stop(layout: StackLayout) -> None:
    """Asks the supervisor to stop everything, itself last; returns at once.

    Raises:
        SupervisorGone: If no supervisor answers.
    """
    _ask(layout, "supervisor.shutdown")


def wait_until_gone(
    layout: StackLayout, timeout_s: float, meanwhile: Callable[[], None] = lambda: None
) -> bool:
    """Returns whether the supervisor has ended within `timeout_s`; calls `meanwhile` while not."""
    deadline = time.monotonic() + timeout_s
    while supervisor_process(layout) is not None:
        meanwhile()
        if time.monotonic() > deadline:
            return False
        time.sleep(_LOOK_EVERY_S)
    return True


def _ask(layout: StackLayout, method: str) -> object:
    from supervisor.xmlrpc import SupervisorTransport

    socket = layout.socket("rpc.sock")
    transport = SupervisorTransport(None, None, f"unix://{socket}")
    try:
        with xmlrpc.client.ServerProxy("http://localhost", transport=transport) as server:
            return getattr(server, method)()
    except (OSError, HTTPException, xmlrpc.client.Error) as error:
        raise SupervisorGone(f"the supervisor does not answer at {socket}: {error}") from error


def unstopped(layout: StackLayout, names: Sequence[str]) -> list[str]:
    """Returns which components have not ended, of a supervisor that stops: it answers no more."""
    stopped = {found[1] for line in _log_lines(layout) if (found := _STOPPED.search(line))}
    return [each for each in names if each not in stopped]


def _starts(layout: StackLayout) -> Counter[str]:
    """Counts the starts of each component from the supervisor's log: it keeps no count itself."""
    found = (_SPAWNED.search(line) for line in _log_lines(layout))
    return Counter(each[1] for each in found if each)


def _log_lines(layout: StackLayout) -> list[str]:
    """Returns what the supervisor wrote since it was started."""
    log = layout.supervisor_log
    backups = [log.with_name(f"{log.name}.{each}") for each in range(_LOG_BACKUPS, 0, -1)]
    lines: list[str] = []
    for path in (*backups, log):
        if not path.exists():
            continue
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            if _STARTED in line:
                lines.clear()
            lines.append(line)
    return lines
