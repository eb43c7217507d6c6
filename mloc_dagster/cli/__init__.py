"""`mloc`, the command. Importing it imports nothing: each command imports what it needs."""

from __future__ import annotations

import gc
import sys
from collections.abc import Sequence

_OBJECTS_BEFORE_A_LOOK = 50_000
"""Python's own is 700: a third of a command's start would be spent on looking again and again for
garbage among what its modules are made of."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line and exits with its code; the entry point of `mloc`."""
    gc.set_threshold(_OBJECTS_BEFORE_A_LOOK)

    from mloc_dagster.cli.entry import run
    from mloc_dagster.local_run import wait_asleep

    wait_asleep()
    code = run(sys.argv[1:] if arguments is None else arguments, keep_private=True)
    gc.freeze()  # all of it goes with the process, and need not be looked at before
    sys.exit(code)
