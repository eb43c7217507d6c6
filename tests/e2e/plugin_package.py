"""The package of `tests/plugin`, built and installed for processes that a test starts."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

from tests.e2e.conftest import ROOT

PLUGIN = ROOT / "tests" / "plugin"


def install_plugin(folder: Path) -> Path:
    """Puts the built wheel into a folder of packages, and returns that."""
    code = f"from hatchling.build import build_wheel; print(build_wheel({str(folder)!r}))"
    built = subprocess.run(
        [sys.executable, "-c", code], cwd=PLUGIN, capture_output=True, text=True, check=True
    )
    with zipfile.ZipFile(folder / built.stdout.split()[-1]) as wheel:
        wheel.extractall(folder)
    return folder


def python_path(folder: Path) -> str:
    """Returns what `PYTHONPATH` is to say so that processes find the packages of a folder."""
    return os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))
