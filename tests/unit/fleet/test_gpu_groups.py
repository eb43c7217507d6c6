"""GPU groups: which worker gets which device, and what is refused."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from mloc_dagster.errors import InputError
from mloc_dagster.fleet.hardware import GpuDevice, Hardware
from mloc_dagster.fleet.worker.group import gpu_groups, group_environment


def machine(*indices: int) -> Hardware:
    gpus = tuple(GpuDevice(index=each, name="nvidia-l4", memory_bytes=1) for each in indices)
    return Hardware(cpus=8, memory_bytes=1, gpus=gpus)


@pytest.mark.parametrize(
    ("gpus", "size", "groups"),
    [
        ("all", 1, [(0,), (1,), (3,), (4,), (5,)]),
        ("all", 2, [(0, 1), (3, 4)]),
        ("ALL", 5, [(0, 1, 3, 4, 5)]),
        ("2", 1, [(0,), (1,)]),
        ("4", 2, [(0, 1), (3, 4)]),
        ("3,", 1, [(3,)]),
        ("5,0", 1, [(5,), (0,)]),
        ("5, 0", 2, [(5, 0)]),
        ("none", 1, [()]),
        ("0", 4, [()]),
    ],
)
def test_groups(gpus: str, size: int, groups: list[tuple[int, ...]]) -> None:
    assert gpu_groups(machine(0, 1, 3, 4, 5), gpus, size) == groups


def test_all_of_no_gpus_is_one_worker_without() -> None:
    assert gpu_groups(machine(), "all") == [()]


@pytest.mark.parametrize(
    ("gpus", "size", "message"),
    [
        ("3", 1, r"--gpus 3 asks for more than there is: 2 GPUs are visible here \(0, 1\)"),
        ("0,7,6", 1, r"names what is not there \(6, 7\): 2 GPUs are visible here \(0, 1\)"),
        ("1,1", 1, "names a device twice"),
        ("some", 1, "'some' is not understood: expected 'all', 'none', a number"),
        ("", 1, "is not understood"),
        ("-1", 1, "is not understood"),
        ("2", 4, "2 GPUs cannot be cut into groups of 4"),
        ("all", 4, "2 GPUs are visible here .* cannot give a worker 4"),
        ("all", 0, "a worker cannot have 0 GPUs"),
    ],
)
def test_what_does_not_exist_is_refused(gpus: str, size: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        gpu_groups(machine(0, 1), gpus, size)


def test_a_machine_without_gpus_says_so() -> None:
    with pytest.raises(InputError, match="no GPU is visible here"):
        gpu_groups(machine(), "1")


def test_a_group_sees_its_devices_as_the_driver_numbers_them() -> None:
    assert group_environment((3, 1)) == {
        "CUDA_VISIBLE_DEVICES": "3,1",
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
    }
    assert group_environment(())["CUDA_VISIBLE_DEVICES"] == ""


@given(st.sets(st.integers(0, 15), min_size=1), st.integers(1, 16))
def test_no_device_is_in_two_groups(indices: set[int], size: int) -> None:
    owned = sorted(indices)
    if size > len(owned):
        return
    groups = gpu_groups(machine(*owned), "all", size)
    given_out = [index for group in groups for index in group]
    assert given_out == owned[: len(owned) // size * size]
    assert {len(group) for group in groups} == {size}
