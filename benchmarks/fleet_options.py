"""How large the parts of the fleet's benchmark are."""

from __future__ import annotations

import argparse
from dataclasses import asdict, dataclass, fields, replace


@dataclass(frozen=True, slots=True)
class Options:
    """Sizes of all parts; each part uses those that it needs.

    Attributes:
        rounds: How often each thing is measured; medians are reported.
        workers: Workers for shards, the fleet's and the Celery ones of the comparison alike.
        shards: Sizes of the runs whose overhead is measured.
        max_stock_shards: Above it Dagster's own executor is left out: it takes minutes a run.
        max_celery_shards: Above it dagster-celery is left out.
        runs: Runs that are submitted to the fleet at once.
        stock_runs: Runs that are submitted to stock Dagster at once; it is slow.
        busy_workers: Workers while the control plane is measured.
        window_s: Seconds for which the control plane is measured.
        rate: Tasks submitted a second meanwhile.
        sizes: Numbers of workers, ascending, between which throughput is compared.
        shards_per_worker: Shards for each of them.
        shard_s: Seconds that a shard sleeps.
        row_s: Seconds that each of its rows takes of that.
    """

    rounds: int = 3
    workers: int = 2
    shards: tuple[int, ...] = (1, 8, 16, 64, 256)
    max_stock_shards: int = 16
    max_celery_shards: int = 64
    runs: int = 100
    stock_runs: int = 10
    busy_workers: int = 4
    window_s: float = 60.0
    rate: float = 1.0
    sizes: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    shards_per_worker: int = 4
    shard_s: float = 5.0
    row_s: float = 0.5


QUICK = Options(
    rounds=1,
    shards=(1, 4),
    max_stock_shards=1,
    max_celery_shards=4,
    runs=5,
    stock_runs=2,
    busy_workers=2,
    window_s=8.0,
    sizes=(1, 2),
    shards_per_worker=2,
    shard_s=1.0,
)
"""Whether everything works, in a few minutes; its figures mean nothing."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds a flag for each size."""
    parser.add_argument("--quick", action="store_true", help="tiny sizes, printed and not recorded")
    for field in fields(Options):
        kind = _numbers if isinstance(field.default, tuple) else type(field.default)
        flag = f"--{field.name.replace('_', '-')}"
        parser.add_argument(flag, type=kind, help=f"default: {_text(field.default)}")


def chosen(arguments: argparse.Namespace) -> Options:
    """Returns the sizes that the command line asks for."""
    given = {key: getattr(arguments, key) for key in asdict(QUICK)}
    base = QUICK if arguments.quick else Options()
    return replace(base, **{key: value for key, value in given.items() if value is not None})


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(sorted(int(each) for each in text.split(",")))


def _text(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
