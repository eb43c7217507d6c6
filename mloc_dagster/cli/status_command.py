"""`mloc status`: components, queues and workers of this home's stack."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import typer

from mloc_dagster.cli.exit_codes import FAILED, OK
from mloc_dagster.cli.tables import print_table
from mloc_dagster.cli.wording import count, duration
from mloc_dagster.services.stack.answers import redis_answers
from mloc_dagster.services.stack.layout import StackLayout, stack_layout
from mloc_dagster.services.stack.leftovers import stack_processes
from mloc_dagster.services.stack.plan import StackPlan, addresses, saved_plan
from mloc_dagster.services.stack.supervisor import (
    ComponentState,
    SupervisorGone,
    component_states,
)

if TYPE_CHECKING:
    from mloc_dagster.fleet import WorkerInfo


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
        _print_workers(fleet.workers)
    else:
        typer.echo("workers: none")


def _print_workers(workers: Sequence[WorkerInfo]) -> None:
    now = datetime.now(UTC)
    rows = [
        (
            each.worker_id,
            each.status.value,
            ", ".join(each.queues),
            _hardware(each),
            ", ".join(each.warm_models) or "–",
            str(len(each.running)),
            f"{duration(max(0.0, (now - each.last_seen).total_seconds()))} ago",
        )
        for each in workers
    ]
    headings = ("worker", "status", "queues", "hardware", "warm models", "running", "last seen")
    print_table(headings, rows, numbers=(5, 6))


def _hardware(worker: WorkerInfo) -> str:
    owned = worker.hardware
    memory = f"{owned.memory_bytes / (1 << 30):.0f} GiB"
    gpus = [f"{gpu.name} {gpu.memory_bytes / (1 << 30):.0f} GiB" for gpu in owned.gpus]
    return ", ".join([count(owned.cpus, "core"), memory, *gpus])
