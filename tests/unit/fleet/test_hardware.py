"""Hardware: what is detected, which queue leads to it, and what it can take."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from mloc_dagster.errors import InputError
from mloc_dagster.fleet.hardware import (
    GpuDevice,
    Hardware,
    Requirements,
    device_name,
    misfit,
    queue_of,
    queues_for,
    requirements_of,
)
from mloc_dagster.fleet.worker.detection import (
    choose_visible,
    cpu_limit,
    detect_hardware,
    memory_limit,
)
from mloc_dagster.schema import Hardware as HardwareSpec
from mloc_dagster.settings import settings

GIB = 1 << 30
H100 = GpuDevice(index=0, name="nvidia-h100-80gb-hbm3", memory_bytes=81559 << 20)
L40S = GpuDevice(index=0, name="nvidia-l40s", memory_bytes=46068 << 20)
BOX = Hardware(cpus=8, memory_bytes=62 * GIB, gpus=(H100, H100.model_copy(update={"index": 1})))

NVIDIA_SMI = """#!/bin/sh
cat <<'END'
0, GPU-aaaa1111, NVIDIA H100 80GB HBM3, 81559
1, GPU-bbbb2222, NVIDIA L4, 23034
2, GPU-cccc3333, NVIDIA GB10, [N/A]
END
"""


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine whose driver lists three devices."""
    tool = tmp_path / "bin" / "nvidia-smi"
    tool.parent.mkdir()
    tool.write_text(NVIDIA_SMI)
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}:/usr/bin:/bin")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.mark.usefixtures("driver")
def test_the_driver_is_asked_for_the_gpus() -> None:
    found = detect_hardware()
    assert found.cpus >= 1
    assert found.memory_bytes > 0
    assert [(gpu.index, gpu.name) for gpu in found.gpus] == [
        (0, "nvidia-h100-80gb-hbm3"),
        (1, "nvidia-l4"),
        (2, "nvidia-gb10"),
    ]
    assert found.gpus[0].memory_bytes == 81559 << 20
    assert found.gpus[2].memory_bytes == found.memory_bytes, "it shares the machine's memory"


@pytest.mark.usefixtures("driver")
@pytest.mark.parametrize(
    ("visible", "indices"),
    [("1", [1]), ("2,0", [2, 0]), ("", []), ("0,-1,1", [0]), ("GPU-bbbb", [1]), ("1,1", [1])],
)
def test_cuda_visible_devices_holds(
    visible: str, indices: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert [gpu.index for gpu in detect_hardware().gpus] == indices


def test_a_driver_that_fails_leaves_a_machine_without_gpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'cannot talk to the driver'\nexit 9\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert detect_hardware().gpus == ()
    assert "cannot talk to the driver" in caplog.text


def test_hardware_can_be_faked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLOC_FAKE_HARDWARE", BOX.model_dump_json())
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    settings.cache_clear()
    assert detect_hardware() == BOX.model_copy(update={"gpus": BOX.gpus[1:]})


def test_workers_of_one_machine_divide_its_cores_and_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("MLOC_FAKE_HARDWARE", BOX.model_dump_json())
    monkeypatch.setenv("MLOC_MACHINE_SHARE", "3")
    settings.cache_clear()
    share = Hardware(cpus=2, memory_bytes=62 * GIB // 3, gpus=BOX.gpus)
    assert detect_hardware() == share


def test_a_fake_that_is_no_hardware_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLOC_FAKE_HARDWARE", json.dumps({"cpus": "many"}))
    settings.cache_clear()
    with pytest.raises(InputError, match=r"MLOC_FAKE_HARDWARE(.|\n)*cpus"):
        detect_hardware()


@pytest.mark.parametrize(
    ("membership", "files", "memory", "cores"),
    [
        (
            "0::/pod/box",
            {"pod/memory.max": "4096", "pod/box/memory.max": "max", "pod/cpu.max": "150000 100000"},
            4096,
            1.5,
        ),
        (
            "4:memory:/box\n1:cpu,cpuacct:/box\n0::/",
            {
                "memory/box/memory.limit_in_bytes": "8192",
                "memory/memory.limit_in_bytes": "9223372036854771712",
                "cpu,cpuacct/box/cpu.cfs_quota_us": "200000",
                "cpu,cpuacct/box/cpu.cfs_period_us": "100000",
            },
            8192,
            2.0,
        ),
        ("0::/not/mounted/here", {"memory.max": "1024", "cpu.max": "max 100000"}, 1024, None),
        ("4:memory:/box", {"memory/cpu.cfs_quota_us": "-1"}, None, None),
    ],
)
def test_control_groups_limit_memory_and_cores(
    membership: str, files: dict[str, str], memory: int | None, cores: float | None, tmp_path: Path
) -> None:
    own = tmp_path / "membership"
    own.write_text(membership)
    for name, text in files.items():
        file = tmp_path / "groups" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    assert memory_limit(tmp_path / "groups", own) == memory
    assert cpu_limit(tmp_path / "groups", own) == cores


@pytest.mark.parametrize("kind", ["h100", "nvidia-h100", "NVIDIA H100", "H100 80GB", "any", ""])
def test_a_type_reaches_every_worker_that_has_it(kind: str) -> None:
    needs = Requirements(gpus=1, gpu_type=kind)
    assert misfit(needs, BOX) is None
    assert queue_of(needs) in queues_for(BOX)


@pytest.mark.parametrize("kind", ["h200", "h10", "l40s", "nvidia-80gb"])
def test_a_type_reaches_nothing_else(kind: str) -> None:
    needs = Requirements(gpus=1, gpu_type=kind)
    assert misfit(needs, BOX) is not None
    assert queue_of(needs) not in queues_for(BOX)


def test_queues_are_named_by_hardware() -> None:
    assert queues_for(Hardware(cpus=4)) == ("cpu",)
    assert queues_for(Hardware(cpus=4, gpus=(L40S,))) == (
        "gpu",
        "gpu.l40s",
        "gpu.nvidia",
        "gpu.nvidia-l40s",
    )
    assert queue_of(Requirements(cpus=2)) == "cpu"
    assert queue_of(Requirements(gpus=2)) == "gpu"


@pytest.mark.parametrize(
    ("needs", "reason"),
    [
        (Requirements(cpus=16), "needs 16 cores, has 8"),
        (Requirements(memory_bytes=100 * GIB), "needs 100 GiB of memory, has 62 GiB"),
        (
            Requirements(gpus=3, gpu_memory_bytes=40 * GIB),
            "needs 3 GPUs with 40 GiB, has 2 nvidia-h100-80gb-hbm3 with 79.6 GiB",
        ),
        (
            Requirements(cpus=9, gpus=1, gpu_type="h200"),
            "needs 9 cores, has 8; needs 1 h200 GPU, has 2 nvidia-h100-80gb-hbm3 with 79.6 GiB",
        ),
        (Requirements(memory_bytes=64 * GIB), None),
        (Requirements(gpus=2, gpu_memory_bytes=80 * GIB), None),
        (Requirements(cpus=0.5), None),
    ],
)
def test_what_does_not_fit_says_why_with_numbers(needs: Requirements, reason: str | None) -> None:
    assert misfit(needs, BOX) == reason


def test_a_machine_without_gpus_says_so() -> None:
    needs = Requirements(gpus=1, gpu_type="h100")
    assert misfit(needs, Hardware(cpus=1)) == "needs 1 h100 GPU, has none"


def test_requirements_are_read_from_the_template() -> None:
    spec = HardwareSpec.model_validate(
        {
            "cpu": "500m",
            "memory": "2Gi",
            "gpu": {"count": 2, "type": "NVIDIA-H100", "memory": "40GiB"},
        }
    )
    assert requirements_of(spec) == Requirements(
        cpus=0.5,
        memory_bytes=2 * GIB,
        gpus=2,
        gpu_type="nvidia-h100",
        gpu_memory_bytes=40 * GIB,
    )
    assert requirements_of(spec, enforce_cpu=True) == Requirements(cpus=0.5, memory_bytes=2 * GIB)
    assert requirements_of(HardwareSpec()) == Requirements()


WORDS = st.sampled_from(["nvidia", "h100", "h200", "80gb", "l4", "rtx", "6000", "ada"])
NAMES = st.lists(WORDS, min_size=1, max_size=5).map("-".join)
GPUS = st.lists(
    st.builds(GpuDevice, index=st.integers(0, 7), name=NAMES, memory_bytes=st.integers(0, 10)),
    max_size=4,
)


@given(
    needs=st.builds(
        Requirements,
        cpus=st.integers(0, 3),
        memory_bytes=st.integers(0, 10),
        gpus=st.integers(0, 3),
        gpu_type=st.one_of(st.just("any"), NAMES, NAMES.map(str.upper), st.text(max_size=6)),
        gpu_memory_bytes=st.integers(0, 10),
    ),
    hardware=st.builds(
        Hardware,
        cpus=st.integers(0, 3),
        memory_bytes=st.integers(0, 10),
        gpus=GPUS.map(tuple),
    ),
)
def test_whatever_fits_waits_in_a_queue_of_the_worker(
    needs: Requirements, hardware: Hardware
) -> None:
    if misfit(needs, hardware) is None and (needs.gpus > 0) == bool(hardware.gpus):
        assert queue_of(needs) in queues_for(hardware)


@given(st.text())
def test_a_device_name_is_spelt_one_way(text: str) -> None:
    assert device_name(device_name(text)) == device_name(text)


@given(st.lists(st.integers(-1, 5).map(str)))
def test_visible_devices_are_devices_each_once(visible: list[str]) -> None:
    chosen = choose_visible([(index, f"GPU-{index}") for index in range(4)], visible)
    assert set(chosen) <= set(range(4))
    assert len(set(chosen)) == len(chosen)
