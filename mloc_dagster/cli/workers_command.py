"""`mloc workers`."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import typer

from mloc_dagster.cli.api_choice import ask
from mloc_dagster.cli.tables import print_table
from mloc_dagster.cli.wording import count
from mloc_dagster.fleet import WorkerInfo, open_engine, require_fleet
from mloc_dagster.fleet.hardware import GPU_QUEUE, Hardware

if TYPE_CHECKING:
    from mloc_dagster.client import Client

_HEADINGS = ("worker", "host", "status", "queues", "hardware", "warm models", "runs", "seen")
_SHOWN = 3


def list_workers(*, as_json: bool) -> None:
    """Prints the live workers.

    Raises:
        InputError: If no Redis is configured.
        TransientError: If it does not answer.
    """

    def over_api(client: Client) -> Sequence[WorkerInfo]:
        return client.workers().workers

    _print(ask(over_api, _registered), as_json=as_json)


def _registered() -> Sequence[WorkerInfo]:
    require_fleet()
    return open_engine().workers()


def _print(workers: Sequence[WorkerInfo], *, as_json: bool) -> None:
    if as_json:
        entries = [each.model_dump(mode="json") for each in workers]
        typer.echo(json.dumps(entries, ensure_ascii=False))
    elif not workers:
        typer.echo("no worker is alive: start one with `mloc worker`", err=True)
    else:
        now = datetime.now(UTC)
        print_table(_HEADINGS, [_row(each, now) for each in workers])


def _row(worker: WorkerInfo, now: datetime) -> Sequence[str]:
    return (
        worker.worker_id,
        worker.host,
        worker.status.value,
        _queues(worker.queues),
        hardware_text(worker.hardware),
        _some(worker.warm_models),
        _some(worker.running),
        f"{max(0.0, (now - worker.last_seen).total_seconds()):.0f} s ago",
    )


def hardware_text(hardware: Hardware) -> str:
    """Returns hardware in a few words: `8 cores, 62 GiB, 2 × nvidia-l4 22 GiB`."""
    parts = [count(hardware.cpus, "core"), f"{hardware.memory_bytes / (1 << 30):.0f} GiB"]
    kinds = Counter((gpu.name, gpu.memory_bytes) for gpu in hardware.gpus)
    for (name, memory_bytes), number in kinds.items():
        times = f"{number} × " if number > 1 else ""
        parts.append(f"{times}{name} {memory_bytes / (1 << 30):.0f} GiB")
    return ", ".join(parts)


def _queues(queues: Sequence[str]) -> str:
    # A GPU's name gives many queues, of which the shortest ones say it all.
    plain = [each for each in queues if "." not in each]
    words = [each for each in queues if each.startswith(f"{GPU_QUEUE}.") and "-" not in each]
    return ", ".join([*plain, *words])


def _some(texts: Sequence[str]) -> str:
    more = len(texts) - _SHOWN
    return "\n".join([*texts[:_SHOWN], *([f"{more} more"] if more > 0 else [])])
