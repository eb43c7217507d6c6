"""How large the parts of the training benchmark are."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Options:
    """Sizes of all parts.

    Attributes:
        prompts: JSON lines with the columns `question` and `answer`.
        methods: Task types whose overhead is measured.
        steps: Optimiser steps of each training there.
        rounds: How often each thing is measured, in turns; medians are reported.
        hidden: Width of the model.
        layers: Its depth.
        checkpoint_steps: Optimiser steps of the trainings with and without checkpoints.
        save_steps: Steps between two of these.
        updates: Batches of answers that PPO and GRPO learn from.
        threads: Threads each process computes with.
    """

    prompts: Path
    methods: tuple[str, ...]
    steps: int
    rounds: int
    hidden: int
    layers: int
    checkpoint_steps: int
    save_steps: int
    updates: int
    threads: int


_DEFAULTS = {
    "steps": 75,
    "rounds": 1,
    "hidden": 256,
    "layers": 3,
    "checkpoint-steps": 100,
    "save-steps": 10,
    "updates": 20,
    "threads": 1,
}
_QUICK = {"steps": 4, "rounds": 1, "checkpoint_steps": 4, "save_steps": 2, "updates": 2}


def parse(parser: argparse.ArgumentParser) -> tuple[argparse.Namespace, Options]:
    """Adds a flag for each size and reads the command line."""
    parser.add_argument("--prompts", type=Path, required=True)
    parser.add_argument("--quick", action="store_true", help="tiny sizes, printed, not recorded")
    parser.add_argument("--methods", default="sft,lora_sft,dpo,reward", help="or grpo, too")
    for name, default in _DEFAULTS.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    sizes = {key: getattr(given, key) for each in _DEFAULTS if (key := each.replace("-", "_"))}
    return given, Options(
        prompts=given.prompts.resolve(),
        methods=tuple(given.methods.split(",")),
        **{**sizes, **(_QUICK if given.quick else {})},
    )
