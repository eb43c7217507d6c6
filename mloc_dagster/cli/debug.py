"""`MLOC_DEBUG=1`: tracebacks, and what libraries print."""

from __future__ import annotations

import os

DEBUG = "MLOC_DEBUG"


def debugging() -> bool:
    """Tells whether tracebacks and the output of libraries are wanted."""
    return os.environ.get(DEBUG, "0") not in ("", "0")
