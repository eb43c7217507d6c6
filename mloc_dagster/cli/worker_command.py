"""`mloc worker`: one warm worker, or one for each group of GPUs."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from mloc_dagster.errors import InputError, TransientError
from mloc_dagster.fleet import RUNS_QUEUE, require_fleet
from mloc_dagster.fleet.worker.detection import detect_hardware
from mloc_dagster.fleet.worker.group import gpu_groups, group_environment, run_worker_group


@dataclass(frozen=True, slots=True)
class WorkerOptions:
    """What the command line says.

    Attributes:
        queues: Where to take work from; empty for what the hardware names.
        gpus: Which GPUs; None for those that the process sees.
        gpus_per_worker: GPUs that one worker owns.
        tags: Free labels, `key=value`.
    """

    queues: Sequence[str]
    gpus: str | None
    gpus_per_worker: int
    tags: Sequence[str]


def work(options: WorkerOptions) -> int:
    """Works until it is told to stop; returns the exit code.

    Raises:
        InputError: If there is no Redis or it refuses the user, no such GPU, or shards and runs
            are mixed.
    """
    with suppress(TransientError):  # a worker waits for a Redis that is away
        require_fleet()
    queues = tuple(options.queues)
    if RUNS_QUEUE in queues and len(queues) > 1:
        raise InputError(
            "runs and shards live in separate processes: start one worker with --queues runs,"
            " and another one for the rest"
        )
    tags = dict(_pair(each) for each in options.tags)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    logging.getLogger("alembic").setLevel(logging.WARNING)
    if options.gpus is not None:
        groups = gpu_groups(detect_hardware(), options.gpus, options.gpus_per_worker)
        if len(groups) > 1:
            return run_worker_group(groups, queues, tags)
        os.environ.update(group_environment(groups[0]))  # before anything starts CUDA
    from mloc_dagster.fleet.worker.process import run_worker_process

    run_worker_process(queues, tags)
    return 0


def _pair(text: str) -> tuple[str, str]:
    key, separator, value = text.partition("=")
    if not separator or not key:
        raise InputError(f"a tag is written key=value, not {text!r}")
    return key, value
