"""`mloc status` and `mloc workers`."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import typer

from mloc_dagster.cli.api_choice import answering_api
from mloc_dagster.cli.terminal import FAILED, OK
from mloc_dagster.display import count, duration, print_table
from mloc_dagster.fleet import GPU_QUEUE, Hardware, WorkerInfo, open_engine, require_fleet
from mloc_dagster.home import StackLayout, stack_layout
from mloc_dagster.services import (
    ComponentState,
    StackPlan,
    SupervisorGone,
    addresses,
    component_states,
    redis_answers,
    saved_plan,
    stack_processes,
)


@dataclass(frozen=True, slots=True)
class _Fleet:
    """What Redis knows; None where it does not answer."""

    queues: Mapping[str, int] | None = None
    workers: Sequence[WorkerInfo] | None = None


def status(*, as_json: bool) -> int:
    """Prints how this home's stack is; returns the exit code: 1 when nothing is up."""
    layout = stack_layout()
    plan = saved_plan(layout)
    try:
        components = _in_order(component_states(layout), plan)
    except SupervisorGone:
        return _not_up(layout, as_json=as_json)
    fleet = _fleet(plan)
    if as_json:
        typer.echo(json.dumps(_document(layout, plan, components, fleet), ensure_ascii=False))
    else:
        _print(plan, components, fleet)
    return OK


def _not_up(layout: StackLayout, *, as_json: bool) -> int:
    left = len(stack_processes(layout))
    if as_json:
        typer.echo(json.dumps({"up": False, "home": str(layout.home), "left_over": left}))
    elif left:
        typer.echo(
            f"{layout.home}: half dead, without its supervisor; left over: {left}. "
            "`mloc down` stops them; `mloc up` does, too, and starts anew"
        )
    else:
        typer.echo(f"nothing is up in {layout.home}")
    return FAILED


def _in_order(components: Sequence[ComponentState], plan: StackPlan | None) -> list[ComponentState]:
    order = {name: place for place, name in enumerate(plan.components() if plan else ())}
    return sorted(components, key=lambda each: order.get(each.name, len(order)))


def _fleet(plan: StackPlan | None) -> _Fleet:
    # The fleet's own connection would wait minutes for a Redis that is away.
    if plan is None or not redis_answers(plan.redis_url):
        return _Fleet()
    from mloc_dagster.fleet import open_engine

    engine = open_engine(plan.redis_url)
    return _Fleet(engine.queue_depths(), engine.workers())


def _document(
    layout: StackLayout,
    plan: StackPlan | None,
    components: Sequence[ComponentState],
    fleet: _Fleet,
) -> dict[str, object]:
    workers = fleet.workers
    return {
        "up": True,
        "home": str(layout.home),
        "addresses": {} if plan is None else addresses(plan),
        "components": [each.model_dump(mode="json") for each in components],
        "queues": fleet.queues,
        "workers": None if workers is None else [each.model_dump(mode="json") for each in workers],
    }


def _print(plan: StackPlan | None, components: Sequence[ComponentState], fleet: _Fleet) -> None:
    if plan is not None:
        print_table(("address", ""), list(addresses(plan).items()))
        typer.echo("")
    rows = [
        (
            each.name,
            each.state,
            str(each.pid or "–"),
            duration(each.uptime_s) if each.pid else "–",
            str(each.restarts),
            str(each.log),
        )
        for each in components
    ]
    headings = ("component", "state", "pid", "up", "restarts", "log")
    print_table(headings, rows, numbers=(2, 3, 4))
    typer.echo("")
    if fleet.queues is None or fleet.workers is None:
        typer.echo("Redis does not answer: nothing is known of queues and workers")
        return
    waiting = ", ".join(f"{queue} {depth}" for queue, depth in sorted(fleet.queues.items()))
    typer.echo(f"waiting: {waiting or 'nothing'}")
    if fleet.workers:
        typer.echo("")
        print_workers(fleet.workers)
    else:
        typer.echo("workers: none")


_HEADINGS = ("worker", "host", "status", "queues", "hardware", "warm models", "runs", "seen")
_SHOWN = 3


def list_workers(*, as_json: bool) -> None:
    """Prints the live workers.

    Raises:
        InputError: If no Redis is configured.
        TransientError: If it does not answer.
    """
    with answering_api() as client:
        workers = _registered() if client is None else client.workers().workers
    if as_json:
        entries = [each.model_dump(mode="json") for each in workers]
        typer.echo(json.dumps(entries, ensure_ascii=False))
    elif not workers:
        typer.echo("no worker is alive: start one with `mloc worker`", err=True)
    else:
        print_workers(workers)


def _registered() -> Sequence[WorkerInfo]:
    require_fleet()
    return open_engine().workers()


def print_workers(workers: Sequence[WorkerInfo]) -> None:
    """Prints a table with a line for each worker."""
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
        f"{duration(max(0.0, (now - worker.last_seen).total_seconds()))} ago",
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
