"""What a worker owns, what a shard needs, and whether the one holds the other.

Queues follow one rule. A ticket waits in one queue: `cpu`, `gpu` for any GPU, or `gpu.` and the
type as the template asks for it. A worker consumes every queue that could name it: one with an
`nvidia-h100-80gb-hbm3` takes `gpu`, `gpu.h100`, `gpu.nvidia-h100`, `gpu.h100-80gb` and so on, for
each run of consecutive words of the name. Whatever fits a worker is therefore in one of its queues.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict

from mloc_dagster.schema import Hardware as HardwareSpec

CPU_QUEUE = "cpu"
GPU_QUEUE = "gpu"
ANY_GPU = "any"

# What a label promises, less what drivers and firmware keep of it: an L4 of "24 GB" has 22.5 GiB,
# a T4 of "16 GB" 15 GiB, a machine of 64 GiB shows 62.
_USABLE = 0.93

_GIB = 1 << 30


class GpuDevice(BaseModel):
    """One GPU.

    Attributes:
        index: What `CUDA_VISIBLE_DEVICES` calls it.
        name: As the driver names it, lower case with dashes: `nvidia-h100-80gb-hbm3`.
        memory_bytes: Its VRAM.
    """

    model_config = ConfigDict(frozen=True)

    index: int
    name: str
    memory_bytes: int


class Hardware(BaseModel):
    """What one worker owns."""

    model_config = ConfigDict(frozen=True)

    cpus: int = 0
    memory_bytes: int = 0
    gpus: tuple[GpuDevice, ...] = ()


class Requirements(BaseModel):
    """What one shard needs; zero asks for nothing.

    Attributes:
        cpus: Logical cores.
        memory_bytes: Main memory.
        gpus: GPUs.
        gpu_type: `any`, or consecutive words of a device name: `h100`, `nvidia-h100`.
        gpu_memory_bytes: VRAM of each GPU.
    """

    model_config = ConfigDict(frozen=True)

    cpus: float = 0
    memory_bytes: int = 0
    gpus: int = 0
    gpu_type: str = ANY_GPU
    gpu_memory_bytes: int = 0


def device_name(text: str) -> str:
    """Returns a device's name as queues and templates spell it: `NVIDIA H200` → `nvidia-h200`."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def requirements_of(spec: HardwareSpec, *, enforce_cpu: bool = False) -> Requirements:
    """Returns what each shard of a task needs.

    Args:
        spec: The template's `resources.hardware`.
        enforce_cpu: Whether the task never uses a GPU, whatever `spec` asks for.
    """
    needs = Requirements(cpus=spec.cpu or 0, memory_bytes=spec.memory or 0)
    if enforce_cpu or spec.gpu.count == 0:
        return needs
    return needs.model_copy(
        update={
            "gpus": spec.gpu.count,
            "gpu_type": device_name(spec.gpu.type) or ANY_GPU,
            "gpu_memory_bytes": spec.gpu.memory or 0,
        }
    )


def queue_of(requirements: Requirements) -> str:
    """Returns the queue in which a ticket with these requirements waits."""
    if requirements.gpus == 0:
        return CPU_QUEUE
    wanted = device_name(requirements.gpu_type)
    return GPU_QUEUE if wanted in ("", ANY_GPU) else f"{GPU_QUEUE}.{wanted}"


def queues_for(hardware: Hardware) -> tuple[str, ...]:
    """Returns the queues that a worker takes tickets from.

    A worker with GPUs leaves `cpu` to others: its GPUs would idle meanwhile.
    """
    if not hardware.gpus:
        return (CPU_QUEUE,)
    types = {run for gpu in hardware.gpus for run in _runs(device_name(gpu.name))}
    return (GPU_QUEUE, *(f"{GPU_QUEUE}.{each}" for each in sorted(types)))


def misfit(requirements: Requirements, hardware: Hardware) -> str | None:
    """Returns why a worker cannot take a ticket, in words with numbers; None if it can.

    Memory fits when the hardware has 93% of what is asked for, so that a card sold as 24 GB
    takes what asks for 24 GiB.
    """
    reasons: list[str] = []
    if requirements.cpus > hardware.cpus:
        reasons.append(f"needs {requirements.cpus:g} {_cores(requirements)}, has {hardware.cpus}")
    if not _holds(hardware.memory_bytes, requirements.memory_bytes):
        reasons.append(
            f"needs {_size(requirements.memory_bytes)} of memory, "
            f"has {_size(hardware.memory_bytes)}"
        )
    if _suitable(requirements, hardware) < requirements.gpus:
        reasons.append(f"needs {_wanted(requirements)}, has {_owned(hardware.gpus)}")
    return "; ".join(reasons) or None


def _suitable(requirements: Requirements, hardware: Hardware) -> int:
    wanted = device_name(requirements.gpu_type)
    return sum(
        _holds(gpu.memory_bytes, requirements.gpu_memory_bytes)
        and (wanted in ("", ANY_GPU) or wanted in _runs(device_name(gpu.name)))
        for gpu in hardware.gpus
    )


def _runs(name: str) -> set[str]:
    words = name.split("-")
    places = range(len(words) + 1)
    return {"-".join(words[first:end]) for first in places for end in places[first + 1 :]}


def _holds(has: int, needs: int) -> bool:
    return has >= needs * _USABLE


def _cores(requirements: Requirements) -> str:
    return "core" if requirements.cpus == 1 else "cores"


def _wanted(requirements: Requirements) -> str:
    wanted = device_name(requirements.gpu_type)
    kind = "" if wanted in ("", ANY_GPU) else f"{wanted} "
    text = f"{requirements.gpus} {kind}GPU{'' if requirements.gpus == 1 else 's'}"
    if requirements.gpu_memory_bytes:
        text += f" with {_size(requirements.gpu_memory_bytes)}"
    return text


def _owned(gpus: Sequence[GpuDevice]) -> str:
    kinds = dict.fromkeys((gpu.name, gpu.memory_bytes) for gpu in gpus)
    return (
        " and ".join(
            f"{sum((gpu.name, gpu.memory_bytes) == kind for gpu in gpus)} {kind[0]} "
            f"with {_size(kind[1])}"
            for kind in kinds
        )
        or "none"
    )


def _size(count: int) -> str:
    gib = count / _GIB
    return f"{gib:.1f}".removesuffix(".0") + " GiB" if gib >= 1 else f"{count / (1 << 20):.0f} MiB"
