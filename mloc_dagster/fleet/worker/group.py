"""Several workers of one machine: its GPUs cut into groups, and a child process for each group."""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from types import FrameType

from mloc_dagster.errors import InputError
from mloc_dagster.fleet.hardware import Hardware
from mloc_dagster.fleet.worker.detection import VISIBLE
from mloc_dagster.settings import settings

_log = logging.getLogger(__name__)

ALL = "all"
NONE = "none"

_LOOK_EVERY_S = 0.2
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 60.0
_STEADY_S = 60.0
"""A child that ran so long starts again after the shortest pause."""
_FINAL_CODES = (0, 2)
"""A worker that was drained, or that a user has to mend: starting it again would not help."""

_PR_SET_PDEATHSIG = 1


def gpu_groups(hardware: Hardware, gpus: str, group_size: int = 1) -> list[tuple[int, ...]]:
    """Returns the GPUs of each worker that `mloc worker --gpus` asks for.

    Args:
        hardware: The whole machine.
        gpus: `all`: as many groups as fit; a number: so many GPUs, the first ones; a list such as
            `0,2` (or `2,` for one): these; `none` or `0`: none.
        group_size: GPUs of each worker.

    Returns:
        Indices, one group for each worker; one empty group is a worker without GPUs, which is
        also what `all` gives where there is none.

    Raises:
        InputError: If there are no such GPUs, or they cannot be cut into groups of that size.
    """
    if group_size < 1:
        raise InputError(f"a worker cannot have {group_size} GPUs: expected at least 1")
    wanted = gpus.strip().lower()
    owned = [gpu.index for gpu in hardware.gpus]
    if wanted in (NONE, "0") or (wanted == ALL and not owned):
        return [()]
    if wanted == ALL:
        if len(owned) < group_size:
            raise InputError(f"{_these(owned)} cannot give a worker {group_size} GPUs")
        return _cut(owned[: len(owned) - len(owned) % group_size], group_size)
    chosen = _chosen(wanted, owned)
    if len(chosen) % group_size:
        raise InputError(f"{len(chosen)} GPUs cannot be cut into groups of {group_size}")
    return _cut(chosen, group_size)


def group_environment(group: Sequence[int]) -> Mapping[str, str]:
    """Returns the variables under which a process sees just these GPUs.

    They have to be set before the first library starts CUDA.
    """
    return {
        VISIBLE: ",".join(map(str, group)),
        # CUDA otherwise numbers devices by speed, and the driver's tools by their place on the bus.
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
    }


def _chosen(wanted: str, owned: Sequence[int]) -> list[int]:
    if wanted.isdecimal():
        count = int(wanted)
        if count > len(owned):
            raise InputError(f"--gpus {count} asks for more than there is: {_these(owned)}")
        return list(owned[:count])
    parts = [part.strip() for part in wanted.removesuffix(",").split(",")]
    if not all(part.isdecimal() for part in parts):
        raise InputError(
            f"--gpus {wanted!r} is not understood: expected 'all', 'none', a number of GPUs, or a "
            "list of devices such as '0,1'"
        )
    chosen = [int(part) for part in parts]
    missing = sorted(set(chosen) - set(owned))
    if missing:
        listed = ", ".join(map(str, missing))
        raise InputError(f"--gpus {wanted} names what is not there ({listed}): {_these(owned)}")
    if len(set(chosen)) < len(chosen):
        raise InputError(f"--gpus {wanted} names a device twice")
    return chosen


def _cut(indices: Sequence[int], size: int) -> list[tuple[int, ...]]:
    return [tuple(indices[first : first + size]) for first in range(0, len(indices), size)]


def _these(owned: Sequence[int]) -> str:
    if not owned:
        return "no GPU is visible here"
    listed = ", ".join(map(str, owned))
    if len(owned) == 1:
        return f"1 GPU is visible here ({listed})"
    return f"{len(owned)} GPUs are visible here ({listed})"


class _Child:
    """One worker: its process, and when it may start again."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        self.name = environment["MLOC_WORKER_NAME"]
        self.code: int | None = None
        self._command = command
        self._environment = environment
        self._process: subprocess.Popen[bytes] | None = None
        self._pause_s = 0.0
        self._moment = 0.0

    @property
    def ended(self) -> bool:
        """Whether it has ended for good."""
        return self.code is not None

    def look(self, stopping: bool, prepare: Callable[[], object]) -> None:
        """Starts the process when it is due; notices its end."""
        if self._process is not None:
            code = self._process.poll()
            if code is None:
                return
            self._process = None
            if stopping or code in _FINAL_CODES:
                self.code = code
                return
            self._back_off(code)
        if stopping:
            self.code = 0
        elif time.monotonic() >= self._moment:
            self._start(prepare)

    def send(self, signum: int) -> None:
        """Passes a signal on."""
        if self._process is not None:
            self._process.send_signal(signum)

    def _start(self, prepare: Callable[[], object]) -> None:
        self._process = subprocess.Popen(  # noqa: S603 - our own command
            self._command,
            env=self._environment,
            # A terminal's Ctrl-C reaches it through us alone: a second one would end it at once.
            start_new_session=True,
            preexec_fn=prepare,
        )
        self._moment = time.monotonic()
        _log.info("worker %s runs as process %d", self.name, self._process.pid)

    def _back_off(self, code: int) -> None:
        now = time.monotonic()
        steady = now - self._moment > _STEADY_S
        longer_s = min(self._pause_s * 2, _LONGEST_PAUSE_S)
        self._pause_s = _FIRST_PAUSE_S if steady or not self._pause_s else longer_s
        self._moment = now + self._pause_s
        how = f"by signal {-code}" if code < 0 else f"with exit code {code}"
        _log.warning("worker %s ended %s; again in %.0f s", self.name, how, self._pause_s)


def run_worker_group(
    groups: Sequence[tuple[int, ...]],
    queues: Sequence[str] = (),
    tags: Mapping[str, str] | None = None,
    *,
    command: Sequence[str] = (sys.executable, "-m", "mloc_dagster.cli", "worker"),
) -> int:
    """Runs one worker for each group of GPUs until all of them have ended.

    They are named after this machine, or `MLOC_WORKER_NAME`: `node-gpu0`, `node-gpu1`, … SIGTERM
    and SIGINT go to every worker. One that dies is started again, later and later.

    Args:
        groups: GPU indices of each worker.
        queues: Where they take work from; empty for what their hardware names.
        tags: Free labels of each.
        command: What a worker is started with; its options follow.

    Returns:
        0 when every worker ended as it should, else the first other exit code; 128 and the
        signal's number for one that was killed.
    """
    arguments = [*command, *(("--queues", ",".join(queues)) if queues else ())]
    for key, value in (tags or {}).items():
        arguments += ["--tag", f"{key}={value}"]
    children = [_child(group, len(groups), arguments) for group in groups]
    prepare = _end_with_parent()
    stopping = False

    def pass_on(signum: int, frame: FrameType | None) -> None:
        nonlocal stopping
        stopping = True
        for child in children:
            child.send(signal.SIGTERM)

    before = {each: signal.signal(each, pass_on) for each in (signal.SIGTERM, signal.SIGINT)}
    try:
        while not all(child.ended for child in children):
            for child in children:
                if not child.ended:
                    child.look(stopping, prepare)
            time.sleep(_LOOK_EVERY_S)
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
    codes = [child.code or 0 for child in children if child.code != -signal.SIGTERM]
    return next((code if code > 0 else 128 - code for code in codes if code), 0)


def _child(group: tuple[int, ...], workers: int, arguments: Sequence[str]) -> _Child:
    machine = settings().worker_name or socket.gethostname()
    environment = {
        **os.environ,
        **group_environment(group),
        "MLOC_WORKER_NAME": f"{machine}-gpu{'-'.join(map(str, group))}",
    }
    environment.setdefault("MLOC_MACHINE_SHARE", str(workers))
    # Its CUDA_VISIBLE_DEVICES leaves it these GPUs and no other.
    own = ["--gpus", "all", "--gpus-per-worker", str(len(group))]
    return _Child([*arguments, *own], environment)


def _end_with_parent() -> Callable[[], object]:
    """Returns what a child does first: on Linux, ask to be drained should we be killed.

    Otherwise whoever starts us again would have two workers on each device.
    """
    if sys.platform != "linux":
        return lambda: None
    prctl = ctypes.CDLL(None).prctl
    return lambda: prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
