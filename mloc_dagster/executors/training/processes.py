"""The processes of a training: forked from a warm server, read through pipes, ended together.

Importing takes longer than the start of a small training. It is done once a worker, by a server of
`multiprocessing` that runs nothing itself: each training is a process of its own as before, which
begins with everything imported and shares those pages with the others.

Each founds a process group, for what it starts itself. Each holds the end of a pipe that nobody
ever writes to: when the worker dies, whatever way, the pipe closes and they end themselves.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, suppress
from functools import cache
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerContext, ForkServerProcess
from multiprocessing.reduction import DupFd
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, Self

from mloc_dagster.errors import TaskCancelled, TransientError
from mloc_dagster.executors.training.messages import (
    LIFELINE_VARIABLE,
    PIPE_VARIABLE,
    Failed,
    Message,
    decode_line,
)

CHILD = "mloc_dagster.executors.training.child"
PRELOADED = "mloc_dagster.executors.training.preloaded"


def fork_training(
    job: Path,
    environment: Mapping[str, str],
    *,
    output: int,
    pipes: Mapping[str, int],
) -> ForkServerProcess:
    """Starts a process that trains.

    Args:
        job: The job's file.
        environment: All of its environment variables.
        output: A file for what it prints.
        pipes: Files that it gets too; each one's number there is told by the variable of that name.
    """
    files = {name: _Handed(each) for name, each in {**pipes, "": output}.items()}
    process = _server().Process(
        target=_begin, args=(job, dict(environment)), kwargs={"files": files}
    )
    process.start()
    return process


class _Handed:
    """A file that is sent along when the process starts."""

    def __init__(self, number: int) -> None:
        self._number = number

    def __reduce__(self) -> tuple[Any, tuple[Any]]:
        return _received, (DupFd(self._number),)


def _received(sent: Any) -> int:
    return sent.detach()


@cache
def _server() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([PRELOADED])
    return context


def _begin(job: Path, environment: dict[str, str], *, files: Mapping[str, int]) -> None:
    """The first thing that a forked process does."""
    os.setpgid(0, 0)
    with open(os.devnull) as nothing:  # noqa: PTH123  a device
        os.dup2(nothing.fileno(), 0)
    for number in (1, 2):
        os.dup2(files[""], number)
    os.environ.clear()
    os.environ.update(environment, **{name: str(each) for name, each in files.items() if name})
    if _met_a_gpu():
        for each in files.values():
            os.set_inheritable(each, True)
        os.execv(sys.executable, [sys.executable, "-m", CHILD, str(job)])  # noqa: S606
    from mloc_dagster.executors.training.child import main

    try:
        main(job)
    finally:
        # Forked processes skip these, and wandb, for one, writes its last lines then.
        atexit._run_exitfuncs()  # noqa: SLF001


def _met_a_gpu() -> bool:
    """Tells if an import has opened CUDA's driver, which does not survive a fork."""
    return "libcuda.so" in Path("/proc/self/maps").read_text()


LOOK_EVERY_S = 0.25
GRACE_S = 20.0
"""Seconds that processes have for ending their step after they were asked to stop."""

SETTLE_S = 5.0
"""Seconds that the other processes have for ending as well, once one has failed: the first to say
so is often one that only lost touch with the process that died."""

TAIL_BYTES = 2000


class TrainingProcesses:
    """Starts the processes of a training; leaving the block ends all of them.

    Args:
        job: The job's file.
        ranks: How many processes train together.
        output: What they print goes to this file.
        silence_s: Seconds without a word after which they are given up.
    """

    def __init__(self, job: Path, *, ranks: int, output: Path, silence_s: float) -> None:
        self._job = job
        self._ranks = ranks
        self._output = output
        self._silence_s = silence_s
        self._processes: list[ForkServerProcess] = []
        self._open = ExitStack()
        self._readers: dict[int, int] = {}
        """The rank of each pipe that is open."""
        self._left_over: dict[int, bytes] = {}
        self._failures: dict[int, Failed] = {}
        self._heard_at = 0.0

    def __enter__(self) -> Self:
        lifeline, held = os.pipe()
        self._open.callback(os.close, held)
        try:
            output = self._open.enter_context(self._output.open("ab"))
            port = _free_port()
            for rank in range(self._ranks):
                reader, writer = os.pipe()
                self._open.callback(os.close, reader)
                self._readers[reader] = rank
                try:
                    started = self._start(rank, port, writer, lifeline, output.fileno())
                finally:
                    os.close(writer)
                self._processes.append(started)
        except BaseException:
            self._end()
            raise
        finally:
            os.close(lifeline)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end()

    def messages(self, cancelled: Callable[[], bool]) -> Iterator[Message]:
        """Yields what the training says until all of its processes have ended well.

        The last message may be a `Failed`: the failure of the process that failed first.

        Raises:
            TaskCancelled: If `cancelled` says so; the processes were asked to stop, and may have
                said something more until then.
            TransientError: If a process ends in another way, or none says anything any more.
        """
        stopping_at: float | None = None
        self._heard_at = time.monotonic()
        while 0 in self._readers.values():
            yield from self._listen(LOOK_EVERY_S)
            if stopping_at is None and cancelled():
                stopping_at = time.monotonic()
                self._signal(signal.SIGTERM)
            if stopping_at is not None:
                if time.monotonic() - stopping_at > GRACE_S:
                    break
            elif self._failures or any(self._codes()[1:]):
                yield self._cause()
                return
            if time.monotonic() - self._heard_at > self._silence_s:
                raise TransientError(
                    f"the training said nothing for {self._silence_s:.0f} s and was ended"
                )
        if stopping_at is not None:
            raise TaskCancelled("stopped in the middle of the training")
        self._await(GRACE_S)
        if any(self._codes()):
            yield self._cause()
        elif None in self._codes():
            raise TransientError(f"a process of the training did not end within {GRACE_S:.0f} s")

    def tail(self) -> str:
        """Returns the end of what the processes printed."""
        if not self._output.exists():
            return ""
        with self._output.open("rb") as file:
            file.seek(max(0, self._output.stat().st_size - TAIL_BYTES))
            return file.read().decode(errors="replace").strip()

    def _start(
        self, rank: int, port: int, writer: int, lifeline: int, output: int
    ) -> ForkServerProcess:
        environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false"}
        if self._ranks > 1:
            environment |= {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(self._ranks),
                "LOCAL_WORLD_SIZE": str(self._ranks),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
            }
        pipes = {LIFELINE_VARIABLE: lifeline, PIPE_VARIABLE: writer}
        return fork_training(self._job, environment, output=output, pipes=pipes)

    def _listen(self, seconds: float) -> Iterator[Message]:
        ready, _, _ = select.select([*self._readers], [], [], seconds)
        for reader in ready:
            self._heard_at = time.monotonic()
            yield from self._read(reader)

    def _read(self, reader: int) -> Iterator[Message]:
        """Yields what came through a pipe, failures aside: they are weighed against each other."""
        rank = self._readers[reader]
        data = os.read(reader, 1 << 16)
        if not data:
            del self._readers[reader]
        *lines, left_over = (self._left_over.get(rank, b"") + data).split(b"\n")
        self._left_over[rank] = left_over
        for line in lines:
            message = decode_line(line)
            if isinstance(message, Failed):
                self._failures.setdefault(rank, message)
            else:
                yield message

    def _codes(self) -> list[int | None]:
        return [process.exitcode for process in self._processes]

    def _await(self, seconds: float) -> None:
        """Waits until all processes have ended, and hears of their failures meanwhile."""
        deadline = time.monotonic() + seconds
        while True:
            alive = [each.sentinel for each in self._processes if each.exitcode is None]
            left = deadline - time.monotonic()
            ready = wait([*alive, *self._readers], max(0.0, left)) if alive else []
            for reader in [each for each in self._readers if each in ready]:
                for _ in self._read(reader):
                    pass
            if not alive or left <= 0:
                return

    def _cause(self) -> Failed:
        """Returns the failure that ended the training; the others lost touch because of it.

        Raises:
            TransientError: If a process died without a word.
        """
        if self._ranks > 1:
            self._await(SETTLE_S)
        self._hear_the_rest()
        codes = list(enumerate(self._codes()))
        killed = [(rank, code) for rank, code in codes if code and _from_outside(code)]
        silent = [(rank, code) for rank, code in codes if code and rank not in self._failures]
        if killed or not self._failures:
            self._blame(*(killed or silent)[0])
        exited = [(rank, code) for rank, code in silent if code > 0]
        if exited:  # a process that only lost touch would have said so
            self._blame(*exited[0])
        first = min(self._failures.values(), key=lambda failure: failure.at)
        aborted = "".join(f"; {self._how(rank, code)} as well" for rank, code in silent)
        return Failed(first.error, first.message + aborted, first.at)

    def _hear_the_rest(self) -> None:
        while ready := select.select([*self._readers], [], [], 0)[0]:
            for reader in ready:
                for _ in self._read(reader):
                    pass

    def _blame(self, rank: int, code: int) -> NoReturn:
        last = self.tail().splitlines()[-1:] or ["nothing"]
        raise TransientError(
            f"the training {self._how(rank, code)}; the last it printed: {last[0]}"
        )

    def _how(self, rank: int, code: int) -> str:
        how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        which = f"process {rank + 1} of {self._ranks}" if self._ranks > 1 else "its process"
        return f"{which} {how}"

    def _end(self) -> None:
        try:
            self._signal(signal.SIGKILL)
            for process in self._processes:
                process.kill()  # it may not have come as far as to found its group
                process.join()
        finally:
            self._open.close()

    def _signal(self, number: signal.Signals) -> None:
        """Signals each group; once a process has ended, its number may be somebody else's."""
        for process in self._processes:
            if process.exitcode is None and process.pid is not None:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, number)


def _from_outside(code: int) -> bool:
    """Tells whether a process was killed; a library that has lost touch aborts its own."""
    return code < 0 and -code != signal.SIGABRT


def _free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]
