"""How the threads of a computation wait for one another."""

from __future__ import annotations

import os

# Turns of a loop before a thread sleeps, for GNU's OpenMP, which PyTorch brings. By itself it takes
# 300,000; with 10,000 a model of 35 M parameters writes a tenth slower on quiet cores.
_TURNS = "100000"


def wait_asleep() -> None:
    """Has threads that wait for the others go to sleep soon, unless the user says how they wait.

    A computation in as many threads as there are cores otherwise wastes the time in which one of
    them has no core. Read when PyTorch is imported, here and in the processes that come of this
    one.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", _TURNS)
