"""supervisord's configuration, generated from a plan."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mloc_dagster.home import StackLayout
from mloc_dagster.services.redis import redis_executable
from mloc_dagster.services.stack.dagster_home import (
    CODE_SERVER,
    DAEMON,
    DAEMON_WORKSPACE,
    WORKSPACE,
)

if TYPE_CHECKING:
    from mloc_dagster.services.stack.plan import StackPlan

_LOG_BYTES = "5MB"
_LOG_BACKUPS = 5

# The supervisor waits a second longer after each failed start; it never gives up.
_START_RETRIES = 1_000_000

# After its grace a draining worker writes its rows and hands its shard back. All else stops at
# the same time: on a busy machine it takes long.
_HANDING_BACK_S = 30

# Components come to the databases as workers do, unless they ask for more.
_OWNER = "--owner"

_WORKER = ("mloc_dagster.cli", "worker")
_WORKER_NEEDS = ("redis", "postgres", "tables")

# Dagster's servers wait up to a minute for calls that others of them hold open, and never end those
# themselves. None of them has anything to lose.
_DAGSTER_STOP_S = 5


@dataclass(frozen=True, slots=True)
class _Program:
    """One supervised process.

    Attributes:
        name: As in `mloc status`.
        command: What it runs.
        stop_signal: How it is asked to stop.
        stop_s: Seconds until it is killed then.
        stop_group: Whether its child processes are asked, too.
        environment: Beyond what all components share.
    """

    name: str
    command: Sequence[str]
    stop_signal: str = "TERM"
    stop_s: int = 30
    stop_group: bool = True
    environment: Mapping[str, str] = field(default_factory=dict)


def supervisor_config(plan: StackPlan, *, drain_grace_s: float, cores: int) -> str:
    """Returns supervisord.conf. It holds no password: these are in the environment.

    Args:
        plan: The stack.
        drain_grace_s: Seconds that a stopping worker lets its shard go on.
        cores: Logical cores, to be shared by the workers.
    """
    groups = {
        "databases": list(_databases(plan)),
        "components": list(_components(plan, drain_grace_s, cores)),
    }
    sections = [_supervisor(plan.layout)]
    for place, (group, programs) in enumerate(groups.items(), start=1):
        if not programs:
            continue
        sections += [_program(program, plan.layout) for program in programs]
        # Groups start in this order and stop in the opposite one, each as a whole and all of its
        # programs at once: whoever stops has its own patience, and needs the databases only.
        names = ",".join(program.name for program in programs)
        sections.append(f"[group:{group}]\nprograms={names}\npriority={place * 10}\n")
    return "\n".join(sections)


def _databases(plan: StackPlan) -> Iterator[_Program]:
    if plan.redis_port is not None:
        yield _redis(plan.layout)
    if plan.postgres_port is not None:
        yield _postgres(plan)


def _components(plan: StackPlan, drain_grace_s: float, cores: int) -> Iterator[_Program]:
    yield _code()
    yield from _dagster(plan)
    if plan.api_port is not None:
        yield from _api(plan, plan.api_port)
    stop_s = int(drain_grace_s) + _HANDING_BACK_S
    for each in range(1, plan.run_workers + 1):
        yield _run_worker(plan, each, stop_s)
    threads = max(1, cores // max(1, len(plan.worker_gpus)))
    for number, gpus in enumerate(plan.worker_gpus, start=1):
        yield _worker(plan, number, gpus, threads, stop_s)


def _redis(layout: StackLayout) -> _Program:
    command = [str(redis_executable()), str(layout.redis / "redis.conf")]
    return _Program("redis", command, stop_s=30)


def _postgres(plan: StackPlan) -> _Program:
    command = [
        *_python("mloc_dagster.services.postgres_server"),
        *(str(plan.layout.postgres), plan.bind_host, str(plan.postgres_port)),
    ]
    # SIGINT is a fast shutdown; at SIGTERM PostgreSQL would wait for its last client to leave.
    return _Program("postgres", command, stop_signal="INT", stop_s=30, stop_group=False)


def _code() -> _Program:
    command = _after(_OWNER, "redis", "postgres", command=_python(CODE_SERVER))
    return _Program("code", command, stop_s=_DAGSTER_STOP_S)


def _dagster(plan: StackPlan) -> list[_Program]:
    home = plan.layout.dagster_home
    where = ("--host", plan.webserver_host, "--port", str(plan.webserver_port))
    workspace = ("--workspace", str(home / WORKSPACE))
    webserver = _python("mloc_dagster.cli", "webserver", *where, *workspace)
    daemon = _python(DAEMON, str(home / DAEMON_WORKSPACE))
    needs = (_OWNER, "redis", "postgres", "code")
    return [
        _Program("webserver", _after(*needs, command=webserver), stop_s=_DAGSTER_STOP_S),
        _Program("daemon", _after(*needs, command=daemon), stop_s=_DAGSTER_STOP_S),
    ]


def _api(plan: StackPlan, port: int) -> list[_Program]:
    where = ("--host", plan.api_host, "--port", str(port))
    commands = {"dispatcher": ("dispatcher",), "api": ("api", *where)}
    return [
        _Program(
            name, _after(_OWNER, "redis", "postgres", command=_python("mloc_dagster.cli", *command))
        )
        for name, command in commands.items()
    ]


def _run_worker(plan: StackPlan, number: int, stop_s: int) -> _Program:
    name = f"runs-{number}"
    command = _after(*_WORKER_NEEDS, command=_python(*_WORKER, "--queues", "runs"))
    environment = {"MLOC_WORKER_NAME": f"{plan.worker_prefix}-{name}"}
    return _Program(name, command, stop_s=stop_s, stop_group=False, environment=environment)


def _worker(plan: StackPlan, number: int, gpus: str | None, threads: int, stop_s: int) -> _Program:
    environment = {"MLOC_WORKER_NAME": f"{plan.worker_prefix}-{number}"}
    shares = {"OMP_NUM_THREADS": threads, "MLOC_MACHINE_SHARE": len(plan.worker_gpus)}
    environment |= {key: str(value) for key, value in shares.items() if key not in os.environ}
    if gpus is not None:
        # CUDA otherwise numbers devices by speed, and the driver's tools by their place on the bus.
        environment |= {"CUDA_VISIBLE_DEVICES": gpus, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    command = _after(*_WORKER_NEEDS, command=_python(*_WORKER))
    # A worker drains by itself: the engines that it started must live until its shard is done.
    return _Program(
        f"worker-{number}", command, stop_s=stop_s, stop_group=False, environment=environment
    )


def _after(*needs: str, command: Sequence[str]) -> list[str]:
    return [*_python("mloc_dagster.services.stack.wait_for"), *needs, "--", *command]


def _python(module: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", module, *arguments]


def _supervisor(layout: StackLayout) -> str:
    socket = layout.socket("rpc.sock")
    # Without this supervisord warns that it is root; it must be, to start PostgreSQL as another.
    user = "user=root\n" if os.geteuid() == 0 else ""
    return f"""\
; Written by `mloc up`, anew each time.
[unix_http_server]
file={_text(socket)}
chmod=0600

[supervisord]
nodaemon=true
silent=true
strip_ansi=true
pidfile={_text(layout.pid_file)}
logfile={_text(layout.supervisor_log)}
logfile_maxbytes={_LOG_BYTES}
logfile_backups={_LOG_BACKUPS}
{user}
[rpcinterface:supervisor]
supervisor.rpcinterface_factory = supervisor.rpcinterface:make_main_rpcinterface

[supervisorctl]
serverurl=unix://{_text(socket)}
"""


def _program(program: _Program, layout: StackLayout) -> str:
    environment = ",".join(f'{key}="{_text(text)}"' for key, text in program.environment.items())
    return f"""\
[program:{program.name}]
command={_text(shlex.join(program.command))}
environment={environment}
autorestart=true
startsecs=1
startretries={_START_RETRIES}
stopsignal={program.stop_signal}
stopwaitsecs={program.stop_s}
stopasgroup={str(program.stop_group).lower()}
killasgroup=true
redirect_stderr=true
stdout_logfile={_text(layout.log_of(program.name))}
stdout_logfile_maxbytes={_LOG_BYTES}
stdout_logfile_backups={_LOG_BACKUPS}
"""


def _text(value: object) -> str:
    """Keeps supervisord from expanding `%(…)s`."""
    return str(value).replace("%", "%%")
