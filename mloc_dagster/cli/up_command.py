"""`mloc up`: the whole system on this machine, until Ctrl-C; `mloc down` stops it."""

from __future__ import annotations

import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import FrameType, TracebackType
from typing import Self

import typer
from rich.console import Console

from mloc_dagster.cli.stack_readiness import Readiness
from mloc_dagster.cli.terminal import FAILED, INTERRUPTED, OK
from mloc_dagster.display import duration, print_table
from mloc_dagster.errors import InputError, MlocError
from mloc_dagster.home import StackLayout, stack_layout, supervisor_process
from mloc_dagster.services import (
    ComponentState,
    StackPlan,
    SupervisorGone,
    addresses,
    clear_remains,
    component_states,
    kill_stack,
    make_plan,
    require_postgres_free,
    saved_plan,
    start_stack,
    starting_alone,
    stop_stack,
)
from mloc_dagster.settings import settings

_LOOK_EVERY_S = 1.0


@dataclass(frozen=True, slots=True)
class UpOptions:
    """What the command line says.

    Attributes:
        workers: How many workers for shards; None for one, with GPUs for one more than these.
        run_workers: How many workers for runs.
        port: Port of Dagster's UI; None for the setting's.
        detach: Whether to leave when everything answers.
        api: Whether the HTTP API and its dispatcher belong to it.
    """

    workers: int | None
    run_workers: int
    port: int | None
    detach: bool
    api: bool = True


def up(options: UpOptions) -> int:
    """Starts the stack and stays until it is told to stop; returns the exit code.

    Raises:
        InputError: If it is up already, or a port is taken.
        TerminalError: If a component does not come up; everything is stopped again.
    """
    console = Console(stderr=True, highlight=False)
    layout = stack_layout()
    layout.create()
    with StopSignals() as signals:
        with starting_alone(layout):
            plan = _prepare(layout, options, console)
            began = time.monotonic()
            named = ", ".join(plan.components())
            console.print(f"starting {named}", markup=False, soft_wrap=True)
            supervisor = start_stack(plan, settings())
            try:
                ready = _await_ready(plan, console, signals, began)
            except MlocError:
                kill_stack(layout)
                supervisor.wait()
                raise
        if ready:
            _say_addresses(plan, Console(highlight=False))
            if options.detach:
                return OK
            console.print("Ctrl-C, or `mloc down` elsewhere, stops it.")
            _follow(layout, console, signals, supervisor)
        code = _stop(layout, console, signals, supervisor)
        return code if ready else INTERRUPTED


def _await_ready(plan: StackPlan, console: Console, signals: StopSignals, began: float) -> bool:
    """Says what is waited for until everything answers; returns False if it was interrupted."""

    def say(line: str) -> None:
        console.print(line, markup=False, soft_wrap=True)

    def elapsed() -> str:
        return duration(time.monotonic() - began)

    def tell(ready: str, awaited: Sequence[ComponentState]) -> None:
        status.update(f"waiting for {', '.join(each.name for each in awaited)} …")
        say(f"{ready} is ready after {elapsed()}")

    def remind(awaited: Sequence[ComponentState]) -> None:
        logs = ", ".join(f"{each.name} ({each.log})" for each in awaited)
        say(f"still waiting after {elapsed()} for {logs}")

    with console.status("starting …") as status:
        return Readiness(plan, tell, remind).wait(lambda: signals.received)


def _prepare(layout: StackLayout, options: UpOptions, console: Console) -> StackPlan:
    def say(message: str) -> None:
        console.print(message, markup=False, soft_wrap=True)

    running = supervisor_process(layout)
    if running is not None:
        raise InputError(_already_up(layout, running.pid))
    clear_remains(layout, say)
    if settings().postgres_url is None:
        require_postgres_free(layout, say)
    return make_plan(
        layout,
        settings(),
        worker_gpus=_worker_gpus(options.workers),
        run_workers=options.run_workers,
        webserver_port=options.port,
        api=options.api,
    )


def _worker_gpus(workers: int | None) -> Sequence[str | None]:
    if workers == 0:
        return ()
    from mloc_dagster.fleet import detect_hardware

    return share_gpus([gpu.index for gpu in detect_hardware().gpus], workers)


def share_gpus(gpus: Sequence[int], workers: int | None) -> list[str | None]:
    """Returns the `CUDA_VISIBLE_DEVICES` of each worker; None where there is nothing to share.

    Workers beyond the number of GPUs have none: they take the tasks that ask for none, which
    workers with GPUs leave alone.

    Args:
        gpus: The machine's.
        workers: How many; None for one per GPU, and one without.
    """
    count = workers or len(gpus) + 1
    if not gpus:
        return [None] * count
    owners = min(count, len(gpus))
    each = len(gpus) // owners
    groups = [gpus[place * each : (place + 1) * each] for place in range(owners)]
    named = [",".join(str(index) for index in group) for group in groups]
    return [*named, *[""] * (count - owners)]


def _already_up(layout: StackLayout, pid: int) -> str:
    plan = saved_plan(layout)
    where = (
        "" if plan is None else "".join(f"\n{name}: {url}" for name, url in addresses(plan).items())
    )
    return f"already up (supervisor {pid}, {layout.home}); `mloc down` stops it{where}"


def _say_addresses(plan: StackPlan, console: Console) -> None:
    rows = [
        *addresses(plan).items(),
        ("workers", f"{len(plan.worker_gpus)} for shards, {plan.run_workers} for runs"),
        ("logs", str(plan.layout.logs)),
    ]
    if plan.redis_port is not None or plan.postgres_port is not None:
        rows.append(("password", str(plan.layout.password)))
    print_table(("up", str(plan.home)), rows, console=console)


def _follow(
    layout: StackLayout,
    console: Console,
    signals: StopSignals,
    supervisor: subprocess.Popen[bytes],
) -> None:
    """Says what dies and what is back, until a signal comes or the supervisor goes."""
    known = {each.name: each for each in component_states(layout)}
    while not signals.wait(_LOOK_EVERY_S) and supervisor.poll() is None:
        try:
            states = component_states(layout)
        except SupervisorGone:
            continue  # it stops, or poll() says so in a moment
        for state in states:
            for line in _changes(known.get(state.name), state):
                console.print(line, markup=False, soft_wrap=True)
            known[state.name] = state


def _changes(before: ComponentState | None, now: ComponentState) -> Iterator[str]:
    if before is None or (before.pid, before.state) == (now.pid, now.state):
        return
    if before.state == "RUNNING" and before.pid != now.pid:
        yield f"{now.name} ({before.pid}) died; starting it again"
    if now.state == "BACKOFF" != before.state:
        yield f"{now.name} does not start; trying again: see {now.log}"
    if now.state == "RUNNING":
        yield f"{now.name} runs ({now.pid}), restart {now.restarts}"


def _stop(
    layout: StackLayout,
    console: Console,
    signals: StopSignals,
    supervisor: subprocess.Popen[bytes],
) -> int:
    died = not signals.received and supervisor.poll() not in (None, 0)
    if died:
        console.print("the supervisor died; stopping what it left")
    signals.on_second = lambda: kill_stack(layout)
    with console.status("stopping … (Ctrl-C again kills)") as status:
        stop_stack(
            layout,
            settings(),
            lambda line: console.print(line, markup=False),
            lambda names: status.update(f"stopping {', '.join(names)} … (Ctrl-C again kills)"),
        )
        supervisor.wait()
    console.print("stopped")
    return FAILED if died else OK


_NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class StopSignals:
    """Ctrl-C, SIGTERM and a closed terminal, while the block runs. Works in the main thread only.

    Attributes:
        on_second: Called, once, when a second one comes.
    """

    def __init__(self) -> None:
        self.on_second: Callable[[], None] | None = None
        self._came = threading.Event()

    @property
    def received(self) -> bool:
        """Whether one came."""
        return self._came.is_set()

    def wait(self, timeout_s: float) -> bool:
        """Returns whether one came, at the latest after `timeout_s`."""
        return self._came.wait(timeout_s)

    def __enter__(self) -> Self:
        self._before = {each: signal.signal(each, self._handle) for each in _NUMBERS}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if not self._came.is_set():
            self._came.set()
        elif self.on_second is not None:
            hurry, self.on_second = self.on_second, None
            hurry()


def down() -> None:
    """Stops everything of this home's stack, whatever state it is in.

    Raises:
        TerminalError: If a process can't be stopped.
    """
    layout = stack_layout()
    console = Console(stderr=True, highlight=False)
    with console.status("stopping …") as status:
        count = stop_stack(
            layout,
            settings(),
            lambda line: console.print(line, markup=False),
            lambda names: status.update(f"stopping {', '.join(names)} …"),
        )
    if count:
        typer.echo(f"stopped {layout.home}: {count} processes ended, none is left")
    else:
        typer.echo(f"nothing is up in {layout.home}")
