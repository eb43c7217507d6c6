"""Looking once a second, where Dagster looks at sensors every five.

Dagster's daemon goes through its sensors every five seconds, whatever interval they ask for. A tick
that is short of that and looks several times is as good as one a second, and costs less: the daemon
writes down each tick, and a look is one query.
"""

from __future__ import annotations

from collections.abc import Iterator
from time import monotonic, sleep

import dagster as dg

EVERY_S = 1.0
_LOOKS = 5


def looks(instance: dg.DagsterInstance) -> Iterator[int]:
    """Yields once a second until the daemon is about to come again.

    Where the daemon evaluates sensors one after the other it yields once: others would wait.
    """
    threads = instance.get_sensor_settings().get("use_threads")
    began = monotonic()
    yield 0
    for number in range(1, _LOOKS if threads else 1):
        sleep(max(0.0, began + number * EVERY_S - monotonic()))
        yield number
