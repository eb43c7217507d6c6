"""`mloc`, the command. Importing it imports nothing: each command imports what it needs."""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line and exits with its code; the entry point of `mloc`."""
    from mloc_dagster.cli.entry import run
    from mloc_dagster.cli.openmp import wait_asleep

    wait_asleep()
    sys.exit(run(sys.argv[1:] if arguments is None else arguments, keep_private=True))
