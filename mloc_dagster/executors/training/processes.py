"""The processes of a training: started together, heard through a pipe, ended together.

Each founds a process group, for what it starts itself. Each holds the end of a pipe that nobody
ever writes to: when the worker dies, whatever way, the pipe closes and they end themselves.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from types import TracebackType
from typing import Self

from mloc_dagster.errors import TaskCancelled, TransientError
from mloc_dagster.executors.training.fork_server import fork_training
from mloc_dagster.executors.training.messages import (
    LIFELINE_VARIABLE,
    PIPE_VARIABLE,
    Failed,
    Message,
    decode_line,
)

LOOK_EVERY_S = 0.25
GRACE_S = 20.0
"""Seconds that processes have for ending their step after they were asked to stop."""

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
        self._reader = -1
        self._left_over = b""

    def __enter__(self) -> Self:
        self._reader, writer = os.pipe()
        lifeline, held = os.pipe()
        self._open.callback(os.close, self._reader)
        self._open.callback(os.close, held)
        try:
            output = self._open.enter_context(self._output.open("ab"))
            port = _free_port()
            for rank in range(self._ranks):
                self._processes.append(self._start(rank, port, writer, lifeline, output.fileno()))
        except BaseException:
            self._end()
            raise
        finally:
            os.close(writer)
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

        Raises:
            TaskCancelled: If `cancelled` says so; the processes were asked to stop, and may have
                said something more until then.
            TransientError: If a process ends in another way, or none says anything any more.
        """
        stopping_at: float | None = None
        heard_at = time.monotonic()
        while True:
            ready, _, _ = select.select([self._reader], [], [], LOOK_EVERY_S)
            if ready:
                data = os.read(self._reader, 1 << 16)
                heard_at = time.monotonic()
                yield from self._lines(data)
                if not data:
                    break
            if stopping_at is None and cancelled():
                stopping_at = time.monotonic()
                self._signal(signal.SIGTERM)
            if stopping_at is not None and time.monotonic() - stopping_at > GRACE_S:
                break
            self._check_alive(stopping=stopping_at is not None)
            if time.monotonic() - heard_at > self._silence_s:
                raise TransientError(
                    f"the training said nothing for {self._silence_s:.0f} s and was ended"
                )
        if stopping_at is not None:
            raise TaskCancelled("stopped in the middle of the training")
        self._await_end()

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
        pipes = {LIFELINE_VARIABLE: lifeline} | ({PIPE_VARIABLE: writer} if rank == 0 else {})
        return fork_training(self._job, environment, output=output, pipes=pipes)

    def _lines(self, data: bytes) -> Iterator[Message]:
        *lines, self._left_over = (self._left_over + data).split(b"\n")
        for line in lines:
            message = decode_line(line)
            if isinstance(message, Failed):
                # What the first process met may only be the end of another one.
                self._check_alive(stopping=False)
            yield message

    def _check_alive(self, *, stopping: bool) -> None:
        """A process that died takes the others with it: they would wait for it for ever."""
        codes = [process.exitcode for process in self._processes]
        if not stopping and any(codes[1:]):
            self._fail(codes)

    def _await_end(self) -> None:
        """Waits for the processes that are left once the first one closed its pipe."""
        deadline = time.monotonic() + GRACE_S
        for process in self._processes:
            # What it waits for may have died: the codes tell.
            process.join(max(0.0, deadline - time.monotonic()))
        codes = [process.exitcode for process in self._processes]
        if any(codes):
            self._fail(codes)
        if None in codes:
            raise TransientError(f"a process of the training did not end within {GRACE_S:.0f} s")

    def _fail(self, codes: list[int | None]) -> None:
        rank, code = next((rank, code) for rank, code in enumerate(codes) if code)
        how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        which = f"process {rank + 1} of {self._ranks}" if self._ranks > 1 else "its process"
        last = self.tail().splitlines()[-1:] or ["nothing"]
        raise TransientError(f"the training {which} {how}; the last it printed: {last[0]}")

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


def _free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]
