"""How large the parts of the control plane's benchmark are."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, fields, replace


@dataclass(frozen=True, slots=True)
class Options:
    """Sizes of all parts; each part uses those that it needs.

    Attributes:
        seconds: For how long is submitted.
        clients: That submit at the same time.
        workers: Workers for shards.
        busy_workers: Workers that have something else to do, in `busy`.
        burst: Small tasks that are there at once, in `drain`.
        finished: Tasks that have ended, in `stock`.
        queued: Tasks that wait, in `stock` and `restart`.
        looks: Requests of each kind that read, in `stock`.
        rows: Of the result, in `stream`.
        rounds: How often it is read.
    """

    seconds: float = 60.0
    clients: int = 16
    workers: int = 2
    busy_workers: int = 4
    burst: int = 5_000
    finished: int = 100_000
    queued: int = 10_000
    looks: int = 300
    rows: int = 1_000_000
    rounds: int = 3


QUICK = Options(
    seconds=5.0,
    burst=200,
    finished=2_000,
    queued=300,
    looks=30,
    rows=20_000,
    rounds=1,
)
"""Whether everything works; its figures mean nothing."""


def parse(parser: argparse.ArgumentParser) -> tuple[argparse.Namespace, Options]:
    """Adds a flag for each size and reads the command line."""
    parser.add_argument("--quick", action="store_true", help="tiny sizes, printed, not recorded")
    for field in fields(Options):
        flag = f"--{field.name.replace('_', '-')}"
        parser.add_argument(flag, type=type(field.default), help=f"default: {field.default}")
    given = parser.parse_args()
    sizes = {field.name: getattr(given, field.name) for field in fields(Options)}
    base = QUICK if given.quick else Options()
    return given, replace(base, **{name: size for name, size in sizes.items() if size is not None})
