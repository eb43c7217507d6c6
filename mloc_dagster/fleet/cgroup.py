"""What this process may use of its machine, as Linux control groups limit it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

_ROOT = Path("/sys/fs/cgroup")
_MEMBERSHIP = Path("/proc/self/cgroup")


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
