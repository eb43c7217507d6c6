"""Cutting a machine's GPUs into groups, one for each worker."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mloc_dagster.errors import InputError
from mloc_dagster.fleet.hardware import Hardware
from mloc_dagster.fleet.nvidia import VISIBLE

ALL = "all"
NONE = "none"


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
