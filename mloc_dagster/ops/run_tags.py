"""Tags of runs by which mloc knows its own, and the tasks that follow from them."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

NODES_TAG = "mloc/nodes"
"""The template's nodes, comma-joined in order; of a template of one task its name alone."""

SLO_TAG = "mloc/slo_seconds"
"""Seconds from submission within which the run should be done."""

SLO_MISSED_TAG = "mloc/slo_missed"
"""Seconds by which the run is late; the last word when it has ended."""

SUBMITTED_TAG = "mloc/submitted_at"
"""When the run's tasks were submitted, in seconds since 1970; when it was created, without it."""

DEAD_LETTER_TAG = "mloc/dead_letter"
"""Ids of tasks that failed for good, comma-joined: a person decides what becomes of them."""

PROCESS_TAG = "mloc/process"
"""`host:pid:start` of the `mloc run` that carries a run, which is none of the fleet's then."""


def op_name(text: str) -> str:
    """Returns `text` as Dagster's names may be: no other characters, none of its own words."""
    # Light commands know the tags without Dagster.
    from mloc_dagster.services import DISALLOWED_NAMES

    name = re.sub(r"[^A-Za-z0-9_]", "_", text)
    return f"{name}_" if name in DISALLOWED_NAMES else name


@dataclass(frozen=True, slots=True)
class RunTask:
    """A task of a run.

    Attributes:
        task_id: The task.
        node: Its stage or node.
        steps: How the names of its steps start.
        export: The step after which it is done.
    """

    task_id: str
    node: str
    steps: str
    export: str

    def owns(self, step_key: str) -> bool:
        """Returns whether a step belongs to the task."""
        top = step_key.partition(".")[0]
        return top in (self.steps, f"{self.steps}__checks", self.export)


def run_tasks(job_name: str, tags: Mapping[str, str], workflow_id: str) -> tuple[RunTask, ...]:
    """Returns the tasks of a run of a template's job; none when the run is no such thing."""
    nodes = [each for each in tags.get(NODES_TAG, "").split(",") if each]
    return tuple(_tasks(job_name, nodes, workflow_id))


def _tasks(job_name: str, nodes: list[str], workflow_id: str) -> Iterable[RunTask]:
    for node in nodes:
        name = op_name(node)
        single = len(nodes) == 1
        yield RunTask(
            task_id=workflow_id if single else f"{workflow_id}-{node}",
            node=node,
            steps=f"{job_name}__{'task' if single else name}",
            export=f"{job_name}__export" if single else f"{job_name}__{name}_export",
        )
