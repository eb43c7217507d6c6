"""What one stack consists of, decided before it starts: components, ports, secret files."""

from __future__ import annotations

import os
import random
import re
import secrets
import socket
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

import psutil
from pydantic import BaseModel, ConfigDict

from mloc_dagster.errors import InputError
from mloc_dagster.home import StackLayout
from mloc_dagster.settings import Settings

_PASSWORD_BYTES = 24


def write_secret(path: Path, text: str) -> None:
    """Replaces a file that only its owner may read; readers see the old or the new text."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
    fresh.replace(path)


def password_in(path: Path) -> str:
    """Returns the password of a file, which is made up on the first call."""
    if path.exists():
        return path.read_text(encoding="utf-8").strip()
    password = secrets.token_urlsafe(_PASSWORD_BYTES)
    write_secret(path, password)
    return password


def masked(url: str) -> str:
    """Returns the URL with `***` for its password."""
    parts = urlsplit(url)
    if not parts.password:
        return url
    user, host = parts.username or "", parts.netloc.rpartition("@")[2]
    return parts._replace(netloc=f"{user}:***@{host}").geturl()


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


STACK = "MLOC_STACK"
"""In the environment of every process of a stack: its absolute home."""

WORKER_USER = "mloc_worker"
"""Who workers are to the embedded Redis and PostgreSQL."""

_ANY_ADDRESS = ("0.0.0.0", "::", "*")  # noqa: S104 (recognised, not bound)


class StackPlan(BaseModel):
    """The addresses and the size of a stack.

    Attributes:
        home: The absolute `MLOC_HOME`.
        bind_host: Where the embedded Redis and PostgreSQL listen.
        webserver_host: Where Dagster's UI listens.
        webserver_port: Dagster's UI.
        redis_url: The fleet's Redis, with its password.
        postgres_url: Dagster's storage, with its password.
        worker_redis_url: The same Redis as workers reach it, with fewer rights.
        worker_postgres_url: The same PostgreSQL as workers reach it, with fewer rights.
        redis_port: The embedded Redis; None when `redis_url` was given.
        postgres_port: The embedded PostgreSQL; None when `postgres_url` was given.
        api_host: Where the API listens.
        api_port: The API; None without it and its dispatcher.
        worker_gpus: For each worker its GPUs, as `CUDA_VISIBLE_DEVICES` has them; None for
            those that the process sees.
        run_workers: How many run workers.
        worker_prefix: What the names of the workers begin with.
        max_concurrent_runs: Runs in progress at a time; -1 is no limit.
    """

    model_config = ConfigDict(frozen=True)

    home: Path
    bind_host: str
    webserver_host: str
    webserver_port: int
    redis_url: str
    postgres_url: str
    redis_port: int | None
    postgres_port: int | None
    api_host: str = "127.0.0.1"
    api_port: int | None = None
    worker_gpus: tuple[str | None, ...] = ()
    run_workers: int = 1
    worker_prefix: str = "worker"
    max_concurrent_runs: int = -1
    worker_redis_url: str | None = None
    worker_postgres_url: str | None = None

    @property
    def layout(self) -> StackLayout:
        """Where it keeps its files."""
        return StackLayout(self.home)

    @property
    def webserver_url(self) -> str:
        """Dagster's UI, as a browser on this machine reaches it."""
        return f"http://{reachable(self.webserver_host)}:{self.webserver_port}"

    @property
    def api_url(self) -> str | None:
        """The API, as programs on this machine reach it; None without one."""
        if self.api_port is None:
            return None
        return f"http://{reachable(self.api_host)}:{self.api_port}"

    def components(self) -> tuple[str, ...]:
        """Returns the names of the supervised processes, in the order of starting."""
        embedded = (("redis", self.redis_port), ("postgres", self.postgres_port))
        return (
            *(name for name, port in embedded if port is not None),
            *("code", "webserver", "daemon"),
            *(("dispatcher", "api") if self.api_port is not None else ()),
            *(f"runs-{number + 1}" for number in range(self.run_workers)),
            *(f"worker-{number + 1}" for number in range(len(self.worker_gpus))),
        )

    def environment(self, base: Mapping[str, str], settings: Settings) -> dict[str, str]:
        """Returns the environment that every component shares; it has the rights of workers.

        Args:
            base: The environment of the command that starts the stack.
            settings: For paths that must not depend on where a component runs.
        """
        environment = {
            **base,
            "DAGSTER_HOME": str(self.layout.dagster_home),
            "MLOC_HOME": str(self.home),
            "MLOC_REDIS_URL": self.worker_redis_url or self.redis_url,
            "MLOC_POSTGRES_URL": self.worker_postgres_url or self.postgres_url,
            "MLOC_RESULTS_URL": _absolute(settings.results_url),
            "PYTHONUNBUFFERED": "1",
            # Whoever sets a process title, as vLLM does, would write it over the environment.
            "SPT_NOENV": "1",
            STACK: str(self.home),
        }
        if self.api_url is not None:
            # Runs link to its pages. An address that others reach it by is for its operator to say.
            environment.setdefault("MLOC_API_URL", self.api_url)
        if settings.templates_dir is not None:
            environment["MLOC_TEMPLATES_DIR"] = str(settings.templates_dir.resolve())
        if settings.templates_path:
            folders = settings.templates_path.split(os.pathsep)
            environment["MLOC_TEMPLATES_PATH"] = os.pathsep.join(
                str(Path(each).expanduser().resolve()) for each in folders if each
            )
        return environment

    def owner_environment(self) -> dict[str, str]:
        """Returns what a component's environment has whose databases are its own."""
        return {"MLOC_REDIS_URL": self.redis_url, "MLOC_POSTGRES_URL": self.postgres_url}

    def save(self) -> None:
        """Keeps the plan for `mloc status`, `mloc down` and the next start."""
        write_secret(self.layout.plan, self.model_dump_json(indent=2))


def saved_plan(layout: StackLayout) -> StackPlan | None:
    """Returns the plan of the stack that runs, or ran last, in a home; None without one."""
    try:
        return StackPlan.model_validate_json(layout.plan.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None


def _concurrent_runs(settings: Settings, run_workers: int) -> int:
    if settings.max_concurrent_runs is not None:
        return settings.max_concurrent_runs
    # Run workers on other machines are unknown here; without any of ours there is no telling.
    return settings.run_slots * run_workers or -1


def make_plan(
    layout: StackLayout,
    settings: Settings,
    *,
    worker_gpus: Sequence[str | None],
    run_workers: int,
    webserver_port: int | None = None,
    api: bool = True,
) -> StackPlan:
    """Chooses addresses and checks that they are free.

    Ports that nobody named stay those of last time while they are free, so that workers on other
    machines find the stack again.

    Raises:
        InputError: If a port that somebody named is taken.
    """
    before = saved_plan(layout)
    port = webserver_port or settings.webserver_port
    require_free(settings.webserver_host, port, "--port, or MLOC_WEBSERVER_PORT")
    if api:
        require_free(settings.api_host, settings.api_port, "MLOC_API_PORT, or --no-api")
    redis_port = postgres_port = None
    redis_url, postgres_url = settings.redis_url, settings.postgres_url
    worker_redis_url = settings.worker_redis_url
    worker_postgres_url = settings.worker_postgres_url
    host = settings.bind_host
    address = reachable(host)
    password, workers = password_in(layout.password), password_in(layout.worker_password)
    if redis_url is None:
        remembered = before.redis_port if before else None
        redis_port = choose_port(host, settings.redis_port, remembered, "MLOC_REDIS_PORT")
        redis_url = f"redis://:{password}@{address}:{redis_port}/0"
        worker_redis_url = f"redis://{WORKER_USER}:{workers}@{address}:{redis_port}/0"
    if postgres_url is None:
        remembered = before.postgres_port if before else None
        postgres_port = choose_port(
            host, settings.postgres_port, remembered, "MLOC_POSTGRES_PORT", unless=redis_port
        )
        place = f"{address}:{postgres_port}/postgres"
        postgres_url = f"postgresql://postgres:{password}@{place}"
        worker_postgres_url = f"postgresql://{WORKER_USER}:{workers}@{place}"
    return StackPlan(
        home=layout.home,
        bind_host=host,
        webserver_host=settings.webserver_host,
        webserver_port=port,
        redis_url=redis_url,
        postgres_url=postgres_url,
        worker_redis_url=worker_redis_url,
        worker_postgres_url=worker_postgres_url,
        redis_port=redis_port,
        postgres_port=postgres_port,
        api_host=settings.api_host,
        api_port=settings.api_port if api else None,
        worker_gpus=tuple(worker_gpus),
        run_workers=run_workers,
        worker_prefix=_plain(settings.worker_name or socket.gethostname()),
        max_concurrent_runs=_concurrent_runs(settings, run_workers),
    )


def addresses(plan: StackPlan) -> dict[str, str]:
    """Returns where a stack answers, by what answers there; passwords are masked."""
    api = {} if plan.api_url is None else {"API": plan.api_url}
    return {
        **api,
        "Dagster UI": plan.webserver_url,
        "Redis": masked(plan.redis_url),
        "PostgreSQL": masked(plan.postgres_url),
    }


def reachable(host: str) -> str:
    """Returns the address at which this machine reaches what listens on `host`."""
    if host in _ANY_ADDRESS:
        return "127.0.0.1"
    return f"[{host}]" if ":" in host else host


def _absolute(url: str) -> str:
    return url if "://" in url else os.fspath(Path(url).resolve())


def _plain(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name) or "worker"
