"""The GPU part of the inference benchmark, whose figures are what it is run for."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.gpu.devices import has_gpu

ROOT = Path(__file__).parents[2]


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.e2e
@pytest.mark.timeout(1800)
@pytest.mark.skipif(not has_gpu(), reason="needs a GPU")
def test_ratios_to_the_bare_engine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompts = tmp_path / "prompts.jsonl"
    with prompts.open("w") as file:
        for number in range(256):
            question = f"There are {number} apples and {number % 7} are eaten. How many are left?"
            row = {"question": question, "answer": str(number - number % 7)}
            file.write(json.dumps(row) + "\n")
    script = ROOT / "benchmarks" / "inference.py"
    done = subprocess.run(
        [sys.executable, str(script), "gpu", "--prompts", str(prompts), "--quick"],
        check=True,
        capture_output=True,
        text=True,
    )
    figures = json.loads(done.stdout)
    assert figures["questions"]["one_shard"]["ratio_shards"] > 0
    with capsys.disabled():
        print(done.stdout)  # noqa: T201
