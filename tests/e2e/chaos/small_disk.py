"""A disk that can be filled, emptied and made read-only while servers use it."""

from __future__ import annotations

import errno
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

_BLOCK = b"\0" * 65536


class SmallDisk:
    """A mounted tmpfs.

    Args:
        folder: Where it is mounted.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._ballast = folder / "ballast"

    def fill(self) -> None:
        """Leaves no byte, until `free`; once more, if somebody has made room meanwhile."""
        with self._ballast.open("ab", buffering=0) as file:
            for block in (_BLOCK, _BLOCK[:512]):
                try:
                    while True:
                        file.write(block)
                except OSError as error:
                    assert error.errno == errno.ENOSPC  # noqa: PT017 (what is caught is not all)

    def free(self) -> None:
        """Gives back what `fill` took."""
        self._ballast.unlink(missing_ok=True)

    def make_writable(self, writable: bool) -> None:
        """Lets writes through, or refuses them all; fails while a file is open for writing."""
        mode = "rw" if writable else "ro"
        subprocess.run(["mount", "-o", f"remount,{mode}", self.folder], check=True)


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[SmallDisk]:
    """Mounts a disk on a folder, which it creates; skips the test where that needs more rights.

    Args:
        folder: Where.
        size: As `mount` has it: `64m`.
    """
    folder.mkdir(parents=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={size},mode=0711", "tmpfs", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount command")
    if done.returncode != 0:
        pytest.skip(f"no disk can be mounted here: {done.stderr.strip()}")
    disk = SmallDisk(folder)
    try:
        yield disk
    finally:
        with suppress(OSError):
            disk.free()
        subprocess.run(["umount", "-l", folder], check=False)
