"""What planning and reuse save: the same rows in another order, and rows that repeat each other."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from inference_model import build_model
from inference_options import Options
from inference_stack import Measured, run_job, write_template
from inference_warm import ENGINE, warm_stack
from inference_workloads import Workloads

PREFIXES = 20
ROWS = 240
"""Out of order each reads most of 2,500 tokens again, which is a minute for 60 rows."""
BLOCK_TOKENS = 128  # of vLLM's CPU build
PREFIX_BLOCKS = 20  # eight solved questions are about 2,450 tokens
RUNNING = 16
CACHES = {
    # Blocks for six prefixes and for what is being written: most have to be read again.
    "scarce": {"num_gpu_blocks_override": 6 * PREFIX_BLOCKS + 3 * RUNNING},
    # vLLM's gigabyte, which has room for all of them: only the first of each is read.
    "ample": {},
}


def measure_prefixes(options: Options, folder: Path, library: Path) -> dict[str, Any]:
    """Returns how much sooner prompts of 20 shuffled prefixes end in the planned order."""
    model = folder / "model"
    build_model(model, hidden=options.hidden, layers=options.layers)
    workloads = Workloads(options.prompts, folder, max(options.rows, 8 * PREFIXES))
    file = workloads.many_prefixes(PREFIXES, min(options.rows, ROWS))
    for cache, blocks in CACHES.items():
        for strategy in ("rows", "tokens"):
            write_template(
                library,
                f"{cache}_{strategy}",
                file,
                model,
                arguments={
                    **ENGINE,
                    "max_num_seqs": RUNNING,
                    "block_size": BLOCK_TOKENS,
                    **blocks,
                },
                new_tokens=options.new_tokens,
                parallel={"strategy": strategy},
            )
    figures: dict[str, Any] = {"prefixes": PREFIXES}
    for cache, blocks in CACHES.items():
        place = folder / cache
        place.mkdir()
        with warm_stack(place, library, options) as stack:
            orders: dict[str, list[Measured]] = {"rows": [], "tokens": []}
            for _ in range(options.rounds):
                for strategy, runs in orders.items():
                    stack.replace_worker()  # an empty cache for each
                    runs.append(run_job(stack, place / "results", f"{cache}_{strategy}"))
        figures[cache] = {**blocks, **_speedup(orders["rows"], orders["tokens"])}
    return figures


def _speedup(unplanned: list[Measured], planned: list[Measured]) -> dict[str, Any]:
    before = [_computing_s(each) for each in unplanned]
    after = [_computing_s(each) for each in planned]
    return {
        "unplanned_s": [round(each, 2) for each in before],
        "planned_s": [round(each, 2) for each in after],
        "unplanned_hit_rate": round(statistics.median(each.hit_rate for each in unplanned), 3),
        "planned_hit_rate": round(statistics.median(each.hit_rate for each in planned), 3),
        "speedup": round(statistics.median(before) / statistics.median(after), 2),
    }


def _computing_s(run: Measured) -> float:
    """Returns the shard's seconds without those in which its new worker loaded the model."""
    return run.shards_s - run.load_s


def measure_duplicates(options: Options, folder: Path, library: Path) -> dict[str, Any]:
    """Returns the time of 40% duplicate rows over that of as many distinct ones."""
    model = folder / "model"
    build_model(model, hidden=options.hidden, layers=options.layers)
    workloads = Workloads(options.prompts, folder, options.rows)
    files = {"distinct": workloads.questions(), "repeated": workloads.repeated(0.4)}
    # Without a prefix cache: one pass must not help the next.
    arguments = {**ENGINE, "enable_prefix_caching": False}
    for name, file in files.items():
        write_template(
            library, name, file, model, arguments=arguments, new_tokens=options.new_tokens
        )
    with warm_stack(folder, library, options) as stack:
        runs: dict[str, list[Measured]] = {name: [] for name in files}
        for number in range(options.rounds + 1):
            for name, measured in runs.items():
                one = run_job(stack, folder / "results", name)
                if number:
                    measured.append(one)
    seconds = {
        name: statistics.median(each.shards_s for each in measured)
        for name, measured in runs.items()
    }
    return {
        "shards_s": {name: [round(each.shards_s, 3) for each in m] for name, m in runs.items()},
        "usage": {name: measured[-1].summary["usage"] for name, measured in runs.items()},
        "ratio": round(seconds["repeated"] / seconds["distinct"], 3),
    }
