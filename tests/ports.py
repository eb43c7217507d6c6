"""TCP ports for servers that a test starts itself."""

from __future__ import annotations

import os
import random

from mloc_dagster.services import is_free

_FIRST, _EACH = 10_000, 2_500


def free_port() -> int:
    """A TCP port that nobody listens on, and that nobody else takes meanwhile.

    Each of pytest's processes has ports of its own, all below those of outgoing connections and
    those that a stack chooses for itself.
    """
    process = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    first = _FIRST + process % 4 * _EACH
    ports = random.sample(range(first, first + _EACH), _EACH)
    return next(port for port in ports if is_free("127.0.0.1", port))
