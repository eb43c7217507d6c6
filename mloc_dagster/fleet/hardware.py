"""What a worker owns, what a shard needs, and whether the one holds the other."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


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
        gpu_type: `any`, or part of a device name.
        gpu_memory_bytes: VRAM of each GPU.
    """

    model_config = ConfigDict(frozen=True)

    cpus: float = 0
    memory_bytes: int = 0
    gpus: int = 0
    gpu_type: str = "any"
    gpu_memory_bytes: int = 0
