"""How a process that trains begins."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

BEGIN = """
import os, sys
from pathlib import Path
from mloc_dagster.executors.training import processes
processes._met_a_gpu = lambda: sys.argv[1] == "met"
pipe, _ = os.pipe()
output = os.open(sys.argv[2], os.O_CREAT | os.O_WRONLY)
files = {"": output, "MLOC_TRAINING_LIFELINE": pipe}
processes._begin(Path("no-such-job.json"), dict(os.environ), files=files)
"""


@pytest.mark.parametrize(("gpu", "afresh"), [("met", True), ("not met", False)])
def test_a_process_forked_after_cudas_driver_was_opened_starts_afresh(
    tmp_path: Path, gpu: str, afresh: bool
) -> None:
    output = tmp_path / "output"
    ended = subprocess.run([sys.executable, "-c", BEGIN, gpu, str(output)], check=False)
    said = output.read_text()
    assert ended.returncode == 1
    assert "no-such-job.json" in said
    assert ("runpy" in said) is afresh
