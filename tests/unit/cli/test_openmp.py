"""How OpenMP's threads wait in the processes of the command line."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

# What the command's process, and with it every child of it, sees in the end.
_ASK = """
import os
from mloc_dagster.cli import main
try:
    main(["--version"])
except SystemExit:
    print(os.environ.get("GOMP_SPINCOUNT"))
"""


@pytest.mark.parametrize(
    ("given", "seen"),
    [
        ({}, "100000"),
        ({"GOMP_SPINCOUNT": "7"}, "7"),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, "None"),
    ],
)
def test_threads_wait_asleep_unless_the_user_says_how(given: dict[str, str], seen: str) -> None:
    ours = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    environment = {key: text for key, text in os.environ.items() if key not in ours} | given
    done = subprocess.run(
        [sys.executable, "-c", _ASK], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == seen
