"""What GPUs draw while rows are computed: NVML's energy counters, divided among the rows."""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Callable
from functools import cache
from typing import Any, Protocol

import msgspec

from mloc_dagster.results import OutputRow

_log = logging.getLogger(__name__)

READ_EVERY_S = 0.1
"""The driver renews its counters about that often, and a reading costs more than a small row."""

_JOULES_PER_UNIT = 1e-3  # NVML counts millijoules
_DEVICES = re.compile(r"cuda(?::(?P<first>\d+)(?:-(?P<last>\d+))?)?")


class Meter(Protocol):
    """Counts what devices draw."""

    def joules(self) -> float:
        """Returns the joules since some moment.

        Raises:
            MeterError: If the driver does not say.
        """
        ...


class MeterError(Exception):
    """A counter that cannot be read, for this reason."""


class RowEnergy:
    """Says what a row took: its engine time, times the mean power of the shard so far.

    Args:
        meter: Counts what the devices of the engine draw.
        clock: Tells the seconds that have passed since some moment.
    """

    def __init__(self, meter: Meter, clock: Callable[[], float] = time.monotonic) -> None:
        self._meter = meter
        self._clock = clock
        self._started_at = self._read_at = clock()
        self._started_with = self._read()
        self._watts: float | None = None

    def stamped(self, row: OutputRow) -> OutputRow:
        """Returns the row with its energy.

        Rows of the first tenth of a second have none, and none has any more once the counter
        could not be read.
        """
        now = self._clock()
        if self._started_with is not None and now - self._read_at >= READ_EVERY_S:
            self._read_at = now
            self._watts = self._power(self._started_with, now)
        if self._watts is None:
            return row
        return msgspec.structs.replace(row, energy_j=row.engine_s * self._watts)

    def _power(self, before: float, now: float) -> float | None:
        drawn = self._read()
        if drawn is None:
            self._started_with = None  # what it counts from here on would not be the shard's
            return None
        return (drawn - before) / (now - self._started_at)

    def _read(self) -> float | None:
        try:
            return self._meter.joules()
        except MeterError as error:
            _log.warning("energy is not measured any more: %s", error)
            return None


def measuring(
    write: Callable[[OutputRow], None], model: object, find: Callable[[str], Meter | None]
) -> Callable[[OutputRow], None]:
    """Returns a `write` that stamps each row with its energy; the same one where nothing measures.

    Args:
        write: Takes a row to the store.
        model: What computes the rows: an engine with a `device`, or anything else.
        find: Returns the meter of a device; usually `find_meter`.
    """
    meter = find(str(getattr(model, "device", "")))
    if meter is None:
        return write
    energy = RowEnergy(meter)
    return lambda row: write(energy.stamped(row))


def gpu_count(device: str) -> int:
    """Returns how many GPUs a device stands for; 0 for a CPU. See `find_meter`."""
    numbers = _numbers(device)
    return 0 if numbers is None else len(numbers)


def find_meter(device: str) -> Meter | None:
    """Returns the meter of a CUDA device, or of a range of them.

    Args:
        device: Such as `cuda:0`, or `cuda:0-3`; numbers count the devices that CUDA sees.

    Returns:
        None for other devices, and where NVML or its counters are missing.
    """
    numbers = _numbers(device)
    nvml = _nvml() if numbers is not None else None
    if numbers is None or nvml is None:
        return None
    try:
        seen = _visible(nvml, os.environ.get("CUDA_VISIBLE_DEVICES"))
        meter = _NvmlMeter(nvml, [seen[number] for number in numbers])
        meter.joules()
    except (nvml.NVMLError, IndexError, MeterError):
        return None  # older than Volta, a slice of a GPU, or a device that is not there any more
    return meter


class _NvmlMeter:
    def __init__(self, nvml: Any, handles: list[Any]) -> None:
        self._nvml = nvml
        self._handles = handles

    def joules(self) -> float:
        read = self._nvml.nvmlDeviceGetTotalEnergyConsumption
        try:
            return sum(map(read, self._handles)) * _JOULES_PER_UNIT
        except self._nvml.NVMLError as error:  # lost from the bus, or a driver that was replaced
            raise MeterError(f"{type(error).__name__}: {error}") from error


@cache
def _nvml() -> Any | None:
    try:
        import pynvml  # pyright: ignore[reportMissingImports]
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None  # there is no driver
    return pynvml


def _numbers(device: str) -> range | None:
    match = _DEVICES.fullmatch(device)
    if match is None:
        return None
    first = int(match["first"] or 0)
    return range(first, int(match["last"] or first) + 1)


def _visible(nvml: Any, named: str | None) -> list[Any]:
    """Returns the devices that CUDA sees, in its order.

    Args:
        nvml: The library.
        named: `CUDA_VISIBLE_DEVICES`: indices or beginnings of UUIDs; what follows the first name
            that means nothing is not seen, as in CUDA.
    """
    handles = [nvml.nvmlDeviceGetHandleByIndex(n) for n in range(nvml.nvmlDeviceGetCount())]
    if named is None:
        return handles
    found: list[Any] = []
    for name in map(str.strip, named.split(",")):
        alike = [
            handle
            for place, handle in enumerate(handles)
            if name == str(place)
            or (name.startswith("GPU-") and nvml.nvmlDeviceGetUUID(handle).startswith(name))
        ]
        if len(alike) != 1:
            break
        found += alike
    return found
