"""How large the parts of the inference benchmark are."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Options:
    """Sizes of all parts.

    Attributes:
        prompts: JSON lines with the columns `question` and `answer`.
        rows: Rows of each workload at most.
        new_tokens: Tokens that each row gets.
        rounds: How often each thing is measured, in turns; medians are reported.
        hidden: Width of the model.
        layers: Its depth.
        threads: Threads each engine computes with.
        many: Rows of the runs whose memory is compared, ascending.
        ray_path: Folder with the packages of `ray[data]`; empty leaves that part out.
    """

    prompts: Path
    rows: int
    new_tokens: int
    rounds: int
    hidden: int
    layers: int
    threads: int
    many: tuple[int, ...]
    ray_path: str


def parse(parser: argparse.ArgumentParser) -> tuple[argparse.Namespace, Options]:
    """Adds a flag for each size and reads the command line."""
    parser.add_argument("--prompts", type=Path, required=True)
    parser.add_argument("--quick", action="store_true", help="tiny sizes, printed, not recorded")
    for name, default in {
        "rows": 1319,
        "new-tokens": 32,
        "rounds": 3,
        "hidden": 384,
        "layers": 6,
        "threads": 1,
    }.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--many", default="1000,100000")
    parser.add_argument("--ray-path", default="")
    given = parser.parse_args()
    quick = given.quick
    return given, Options(
        prompts=given.prompts.resolve(),
        rows=64 if quick else given.rows,
        new_tokens=4 if quick else given.new_tokens,
        rounds=1 if quick else given.rounds,
        hidden=given.hidden,
        layers=given.layers,
        threads=given.threads,
        many=(100, 200) if quick else tuple(int(each) for each in given.many.split(",")),
        ray_path=given.ray_path,
    )
