"""From nothing to a running stack, and back to nothing."""

from __future__ import annotations

import fcntl
import os
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import psutil

from mloc_dagster.errors import InputError, TerminalError
from mloc_dagster.home import (
    PostgresUsers,
    StackLayout,
    is_supervised,
    postmaster,
    supervisor_process,
)
from mloc_dagster.services.redis import write_redis_config
from mloc_dagster.services.stack.dagster_home import CODE_LOCATIONS, write_dagster_home
from mloc_dagster.services.stack.forks import FORK_PREFIX
from mloc_dagster.services.stack.plan import StackPlan, password_in, write_secret
from mloc_dagster.services.stack.processes import stack_processes, stop_processes
from mloc_dagster.services.stack.supervisor import (
    SupervisorGone,
    ask_to_stop,
    component_states,
    start_supervisor,
    unstopped,
    wait_until_gone,
)
from mloc_dagster.services.stack.supervisor_config import supervisor_config
from mloc_dagster.settings import Settings

# What stops one after the other under the supervisor, beside the workers' own grace.
_STOP_S = 60.0
_LEFTOVER_S = 15.0

Say = Callable[[str], None]


@contextmanager
def starting_alone(layout: StackLayout) -> Iterator[None]:
    """Keeps two commands from starting or stopping the same stack at once.

    Raises:
        InputError: If another one is at it.
    """
    with (layout.supervisor / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"another command is starting or stopping {layout.home}") from None
        yield


def clear_remains(layout: StackLayout, say: Say) -> None:
    """Stops what an earlier stack left running, and nothing else; removes its stale pid file.

    Args:
        layout: Where; its supervisor is dead.
        say: Told of each thing that was found.

    Raises:
        TerminalError: If a process can't be stopped.
    """
    left = stack_processes(layout)
    if left:
        counts = sorted(Counter(_title(each) for each in left).items())
        named = ", ".join(f"{name} ({count})" if count > 1 else name for name, count in counts)
        say(f"an earlier stack lost its supervisor; stopping what it left: {named}")
        _end(left)
    if layout.pid_file.exists():
        layout.pid_file.unlink()
        say(f"removed the stale pid file {layout.pid_file}")
    for name in ("rpc.sock", *(each.socket for each in CODE_LOCATIONS)):
        layout.socket(name).unlink(missing_ok=True)


def require_postgres_free(layout: StackLayout, say: Say) -> None:
    """Makes sure that no server that `mloc run` or `dagster dev` started holds the data folder.

    Raises:
        InputError: If somebody uses it; names the processes.
    """
    server = postmaster(layout.postgres)
    if server is None or is_supervised(server):
        return
    users = PostgresUsers(layout.postgres)
    with users.alone():
        if pids := users.pids():
            named = ", ".join(f"{_title_of(pid)} ({pid})" for pid in pids)
            raise InputError(
                f"the database of {layout.home} is in use by {named}: wait for it or stop it first"
            )
        say(f"stopping a PostgreSQL ({server.pid}) whose users are gone")
        _end([server, *server.children(recursive=True)])


def start_stack(plan: StackPlan, settings: Settings) -> subprocess.Popen[bytes]:
    """Writes a stack's files and starts its supervisor, which starts the rest.

    Raises:
        TerminalError: If the supervisor does not start.
    """
    layout = plan.layout
    write_dagster_home(plan)
    if plan.redis_port is not None:
        write_redis_config(
            layout.redis,
            host=plan.bind_host,
            port=plan.redis_port,
            password=password_in(layout.password),
            worker_password=password_in(layout.worker_password),
        )
    cores = psutil.cpu_count() or 1
    config = supervisor_config(plan, drain_grace_s=settings.drain_grace_s, cores=cores)
    write_secret(layout.config, config)
    plan.save()
    return start_supervisor(layout, plan.environment(os.environ, settings))


def stop_stack(
    layout: StackLayout,
    settings: Settings,
    say: Say,
    waiting: Callable[[Sequence[str]], None] = lambda _names: None,
) -> int:
    """Stops a stack, half-dead ones included, and makes sure that nothing of it is left.

    Args:
        layout: Where.
        settings: For how long workers may take.
        say: Told what had to be done beyond asking.
        waiting: Told again and again which components have not ended yet.

    Returns:
        How many processes it had; 0 if nothing was up.

    Raises:
        TerminalError: If a process can't be stopped.
    """
    count = len(stack_processes(layout))
    if supervisor_process(layout) is not None:
        try:
            names = [each.name for each in component_states(layout)]
            ask_to_stop(layout)
        except SupervisorGone as error:
            say(str(error))
        else:
            patience_s = _STOP_S + 2 * settings.drain_grace_s
            wait_until_gone(layout, patience_s, lambda: waiting(unstopped(layout, names)))
    kill_stack(layout, _LEFTOVER_S)
    layout.pid_file.unlink(missing_ok=True)
    return count


def kill_stack(layout: StackLayout, patience_s: float = 0.0) -> None:
    """Ends every process of a stack, its supervisor first.

    Args:
        layout: Where.
        patience_s: Seconds that the others get to end by themselves.

    Raises:
        TerminalError: If a process can't be stopped.
    """
    supervisor = supervisor_process(layout)
    if supervisor is not None:
        # It would start the others again.
        supervisor.kill()
        wait_until_gone(layout, _LEFTOVER_S)
    while left := stack_processes(layout):
        _end(left, patience_s)


def _end(processes: list[psutil.Process], patience_s: float = _LEFTOVER_S) -> None:
    stubborn = stop_processes(processes, patience_s)
    if stubborn:
        named = ", ".join(f"{_title(each)} ({each.pid})" for each in stubborn)
        raise TerminalError(f"these processes can't be stopped: {named}")


def _title_of(pid: int) -> str:
    try:
        return _title(psutil.Process(pid))
    except psutil.NoSuchProcess:  # a fork of it lives, or it is in another container
        return "a process"


def _title(process: psutil.Process) -> str:
    """Returns the component that a process is or belongs to."""
    try:
        words, name = process.cmdline(), process.name()
        if name != "postgres" and (worker := process.environ().get("MLOC_WORKER_NAME")):
            return worker
    except psutil.Error:
        return "a process"
    if name.startswith(FORK_PREFIX):
        return name.removeprefix(FORK_PREFIX)
    if "-m" not in words[:-1]:
        return name
    place = words.index("-m") + 1
    module = words[place]
    if module == "mloc_dagster.cli":
        return next(iter(words[place + 1 :]), module)
    return module
