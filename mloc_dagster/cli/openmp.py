"""OpenMP's threads on cores that somebody else uses, too."""

from __future__ import annotations

import os

# Of GNU's OpenMP, which PyTorch brings: turns of a loop, about 10 µs, where its own 300,000 take
# as long as the system lets another process have the core.
_TURNS = "10000"


def wait_asleep() -> None:
    """Has threads that wait for the others go to sleep soon, unless the user says how they wait.

    A computation in as many threads as there are cores otherwise wastes the time in which one of
    them has no core. Read when PyTorch is imported, here and in the processes that come of this
    one.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", _TURNS)
