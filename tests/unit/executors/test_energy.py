"""Energy of rows, by a meter that is set by hand and by a driver of our own."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from mloc_dagster.executors import energy
from mloc_dagster.executors.energy import MeterError, RowEnergy, find_meter, measuring
from mloc_dagster.results import OutputRow


class Bench:
    """A clock and a meter: 50 W unless told otherwise, 1000 J on the counter from before."""

    def __init__(self) -> None:
        self.now = 7.0
        self.drawn = 1000.0
        self.readings = 0

    def joules(self) -> float:
        self.readings += 1
        return self.drawn

    def go_on(self, seconds: float, watts: float = 50.0) -> None:
        self.now += seconds
        self.drawn += seconds * watts


@pytest.fixture
def bench() -> Bench:
    return Bench()


@pytest.fixture
def rows(bench: Bench) -> RowEnergy:
    return RowEnergy(bench, clock=lambda: bench.now)


def test_a_row_has_its_engine_time_at_the_shards_mean_power(bench: Bench, rows: RowEnergy) -> None:
    bench.go_on(1.0, watts=100)
    assert rows.stamped(OutputRow(0, "a", engine_s=0.5)).energy_j == pytest.approx(50)
    bench.go_on(1.0, watts=200)
    assert rows.stamped(OutputRow(1, "a", engine_s=0.5)).energy_j == pytest.approx(75)


def test_rows_that_fill_the_time_have_all_that_was_drawn(bench: Bench, rows: RowEnergy) -> None:
    total = 0.0
    for index in range(40):
        bench.go_on(0.25)
        total += rows.stamped(OutputRow(index, "a", engine_s=0.25)).energy_j or 0
    assert total == pytest.approx(bench.drawn - 1000)


def test_a_row_that_was_not_computed_drew_nothing(bench: Bench, rows: RowEnergy) -> None:
    bench.go_on(1.0)
    assert rows.stamped(OutputRow(0, "a", reused="cache")).energy_j == 0


def test_the_counter_is_read_rarely_and_before_that_nothing_is_known(
    bench: Bench, rows: RowEnergy
) -> None:
    assert rows.stamped(OutputRow(0, "a", engine_s=0.01)).energy_j is None
    for _ in range(100):
        bench.go_on(0.01)
        rows.stamped(OutputRow(0, "a", engine_s=0.01))
    assert bench.readings <= 11


def test_only_a_measured_device_changes_what_is_written(bench: Bench) -> None:
    written: list[OutputRow] = []
    on_cpu, on_gpu = SimpleNamespace(device="cpu"), SimpleNamespace(device="cuda:0")

    def find(device: str) -> Bench | None:
        return bench if device.startswith("cuda") else None

    assert measuring(written.append, on_cpu, find) == written.append
    assert measuring(written.append, None, find) == written.append
    measuring(written.append, on_gpu, find)(OutputRow(0, "a"))
    assert written == [OutputRow(0, "a")]


class Driver:
    """Three GPUs that have drawn 1, 10 and 100 joules."""

    NVMLError = RuntimeError
    uuids = ("GPU-aa11", "GPU-aa22", "GPU-bb33")

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return 3

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802
        return index

    def nvmlDeviceGetUUID(self, handle: int) -> str:  # noqa: N802
        return self.uuids[handle]

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: int) -> int:  # noqa: N802
        return 1000 * 10**handle


@pytest.mark.parametrize(
    ("visible", "device", "joules"),
    [
        (None, "cuda:0", 1),
        (None, "cuda", 1),
        (None, "cuda:1", 10),
        (None, "cuda:0-2", 111),
        ("2,0", "cuda:0", 100),
        ("2,0", "cuda:0-1", 101),
        ("GPU-bb", "cuda:0", 100),
        ("GPU-aa", "cuda:0", None),
        ("", "cuda:0", None),
        ("-1", "cuda:0", None),
        ("0", "cuda:1", None),
        (None, "cpu", None),
        (None, "", None),
    ],
)
def test_the_devices_that_cuda_sees_are_read(
    visible: str | None, device: str, joules: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(energy, "_nvml", Driver)
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    meter = find_meter(device)
    assert (None if meter is None else meter.joules()) == joules


def test_a_counter_that_is_missing_harms_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    class Old(Driver):
        def nvmlDeviceGetTotalEnergyConsumption(self, handle: int) -> int:  # noqa: N802
            raise RuntimeError("not supported")

    monkeypatch.setattr(energy, "_nvml", Old)
    assert find_meter("cuda:0") is None


def test_a_counter_that_is_lost_leaves_rows_without_energy(
    bench: Bench, rows: RowEnergy, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    bench.go_on(1.0)
    assert rows.stamped(OutputRow(0, "a", engine_s=0.5)).energy_j == pytest.approx(25)

    def lost() -> float:
        raise MeterError("GPU is lost")

    monkeypatch.setattr(bench, "joules", lost)
    for index in range(1, 4):
        bench.go_on(1.0)
        row = OutputRow(index, "a", engine_s=0.5)
        assert rows.stamped(row) == row
    assert caplog.text.count("GPU is lost") == 1


def test_a_driver_that_fails_in_the_middle_of_a_shard_fails_no_row(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Failing(Driver):
        readings = 0

        def nvmlDeviceGetTotalEnergyConsumption(self, handle: int) -> int:  # noqa: N802
            self.readings += 1
            if self.readings > 2:
                raise RuntimeError("GPU is lost")
            return 1000

    monkeypatch.setattr(energy, "_nvml", Failing)
    monkeypatch.setattr(energy, "READ_EVERY_S", 0)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    written: list[OutputRow] = []
    write = measuring(written.append, SimpleNamespace(device="cuda:0"), find_meter)
    write(OutputRow(0, "a", engine_s=0.5))
    assert written == [OutputRow(0, "a", engine_s=0.5)]
