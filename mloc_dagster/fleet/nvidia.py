"""The NVIDIA devices of this machine, asked of the driver; no framework is imported."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

_log = logging.getLogger(__name__)

_QUERY = ("--query-gpu=index,uuid,name,memory.total", "--format=csv,noheader,nounits")
_TIMEOUT_S = 60  # without persistence mode the driver wakes each device first

VISIBLE = "CUDA_VISIBLE_DEVICES"


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
