"""What this process may use of its machine: cores, memory and GPUs.

Cores and memory are limited by Linux control groups; the driver is asked for the GPUs. No framework
is imported.
"""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
from pydantic import ValidationError

from mloc_dagster.errors import InputError
from mloc_dagster.fleet.hardware import GpuDevice, Hardware, device_name
from mloc_dagster.settings import settings

_log = logging.getLogger(__name__)

_ROOT = Path("/sys/fs/cgroup")
_MEMBERSHIP = Path("/proc/self/cgroup")

_QUERY = ("--query-gpu=index,uuid,name,memory.total", "--format=csv,noheader,nounits")
_TIMEOUT_S = 60  # without persistence mode the driver wakes each device first

VISIBLE = "CUDA_VISIBLE_DEVICES"


def detect_hardware() -> Hardware:
    """Returns what this process may use.

    Cores by affinity and CPU quota, memory by its control groups, each divided among
    `MLOC_MACHINE_SHARE` workers; GPUs by the driver. `CUDA_VISIBLE_DEVICES` holds for real and
    for faked ones.

    Raises:
        InputError: If `MLOC_FAKE_HARDWARE` is no hardware.
    """
    known = settings()
    if known.fake_hardware is not None:
        machine = _visible(_parse_fake(known.fake_hardware))
    else:
        machine = _machine()
    if known.machine_share == 1:
        return machine
    return machine.model_copy(
        update={
            "cpus": max(1, machine.cpus // known.machine_share),
            "memory_bytes": machine.memory_bytes // known.machine_share,
        }
    )


def _machine() -> Hardware:
    memory = min(psutil.virtual_memory().total, memory_limit() or 1 << 62)
    cores = min(len(os.sched_getaffinity(0)), cpu_limit() or 1 << 20)
    gpus = nvidia_gpus()
    shown = choose_visible([(gpu.index, gpu.uuid) for gpu in gpus], visible_devices())
    by_index = {gpu.index: gpu for gpu in gpus}
    return Hardware(
        cpus=max(1, int(cores)),
        memory_bytes=memory,
        gpus=tuple(
            GpuDevice(
                index=index,
                name=device_name(by_index[index].name),
                memory_bytes=by_index[index].memory_bytes or memory,
            )
            for index in shown
        ),
    )


def _parse_fake(text: str) -> Hardware:
    try:
        return Hardware.model_validate_json(text)
    except ValidationError as error:
        raise InputError(f"MLOC_FAKE_HARDWARE is no hardware: {error}") from error


def _visible(hardware: Hardware) -> Hardware:
    by_index = {gpu.index: gpu for gpu in hardware.gpus}
    shown = choose_visible([(index, "") for index in by_index], visible_devices())
    return hardware.model_copy(update={"gpus": tuple(by_index[index] for index in shown)})


# Cores and memory


def memory_limit(root: Path = _ROOT, membership: Path = _MEMBERSHIP) -> int | None:
    """Returns the tightest memory limit in bytes; None without one."""
    limits = [
        int(text)
        for folder in _groups(root, membership, "memory")
        for name in ("memory.max", "memory.limit_in_bytes")
        if (text := _read(folder / name)).isdigit()
    ]
    # Version 1 says "no limit" with a number beyond any machine's memory; callers take a minimum.
    return min(limits, default=None)


def cpu_limit(root: Path = _ROOT, membership: Path = _MEMBERSHIP) -> float | None:
    """Returns the tightest CPU quota in cores; None without one."""
    quotas: list[float] = []
    for folder in _groups(root, membership, "cpu"):
        parts = _read(folder / "cpu.max").split()
        if not parts:
            parts = [_read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")]
        if len(parts) == 2 and all(part.isdigit() for part in parts):  # not "max", not "-1"
            quotas.append(int(parts[0]) / int(parts[1]))
    return min(quotas, default=None)


def _groups(root: Path, membership: Path, controller: str) -> Iterator[Path]:
    """Yields the folders of this process's group and of all groups above it.

    Both versions and their mixture; in a container the path may be one of the host's, which is
    not there, while the group's own files lie at the root.
    """
    for line in _read(membership).splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            tops = [root, root / "unified"]
        elif controller in controllers.split(","):
            tops = [root / controller, root / controllers]
        else:
            continue
        own = Path(path.lstrip("/"))
        for top in dict.fromkeys(tops):
            for group in (own, *own.parents):
                yield top / group


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:  # this group has no such controller
        return ""


# GPUs


@dataclass(frozen=True, slots=True)
class NvidiaGpu:
    """A device as the driver lists it.

    Attributes:
        index: Its place in the order of the PCI bus.
        uuid: `GPU-…`.
        name: Such as `NVIDIA H100 80GB HBM3`.
        memory_bytes: Its VRAM; None where it shares the machine's memory.
    """

    index: int
    uuid: str
    name: str
    memory_bytes: int | None


def nvidia_gpus() -> list[NvidiaGpu]:
    """Returns every NVIDIA device, visible to CUDA or not; none where there is no driver."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    try:
        answer = subprocess.run(  # noqa: S603 - fixed arguments
            [tool, *_QUERY], capture_output=True, text=True, check=True, timeout=_TIMEOUT_S
        )
    except (OSError, subprocess.SubprocessError) as error:
        said = (getattr(error, "stdout", None) or "").strip()
        _log.warning("no GPU is used, because nvidia-smi failed: %s %s", error, said)
        return []
    return parse_gpus(answer.stdout)


def parse_gpus(text: str) -> list[NvidiaGpu]:
    """Reads what `nvidia-smi --query-gpu=index,uuid,name,memory.total` prints."""
    found: list[NvidiaGpu] = []
    for line in filter(None, map(str.strip, text.splitlines())):
        index, uuid, name, memory = (part.strip() for part in line.split(","))
        found.append(
            NvidiaGpu(
                index=int(index),
                uuid=uuid,
                name=name,
                memory_bytes=int(memory) << 20 if memory.isdigit() else None,  # "[N/A]"
            )
        )
    return found


def visible_devices() -> list[str] | None:
    """Returns the entries of `CUDA_VISIBLE_DEVICES`; None when it is not set."""
    given = os.environ.get(VISIBLE)
    if given is None:
        return None
    return [part for each in given.split(",") if (part := each.strip())]


def choose_visible(names: Sequence[tuple[int, str]], visible: Sequence[str] | None) -> list[int]:
    """Returns the indices that CUDA would show, in its order.

    As CUDA does, it stops at the first entry that names no device: `0,-1,1` shows only 0.

    Args:
        names: Index and UUID of each device.
        visible: Entries of `CUDA_VISIBLE_DEVICES`: indices, or UUIDs cut short anywhere.
    """
    if visible is None:
        return [index for index, _ in names]
    chosen: list[int] = []
    for entry in visible:
        matching = [
            index
            for index, uuid in names
            if entry == str(index) or (entry.startswith("GPU-") and uuid.startswith(entry))
        ]
        if len(matching) != 1 or matching[0] in chosen:
            break
        chosen += matching
    return chosen
