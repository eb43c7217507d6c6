"""Tags of runs by which mloc knows its own, and the tasks that follow from them."""

import getpass
import os
import re
import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qsl, urlencode

# Dagster's UI shows no tag that begins so; people see what is left.
_HIDDEN = ".dagster/mloc_"

USER_TAG = "user"
"""Who launched the run, as Dagster's run list shows it; without it "Manually launched"."""

TEMPLATE_TAG = "mloc/template"
"""The template's name."""

NODES_TAG = f"{_HIDDEN}nodes"
"""The template's nodes, comma-joined in order; of a template of one task its name alone."""

TASK_TYPES_TAG = f"{_HIDDEN}task_types"
"""The nodes' task types, comma-joined in the same order."""

DEPENDS_ON_TAG = f"{_HIDDEN}depends_on"
"""`node=upstream` for each edge of the template, as in a query string."""

OWNER_TAG = "mloc/owner"
"""The template's owner."""

LABELS_TAG = f"{_HIDDEN}labels"
"""The template's labels, as in a query string."""

WORKFLOW_TAG = f"{_HIDDEN}workflow_id"
"""The id that the run's tasks share, where it is not the run's own."""

LAUNCH_TAG = f"{_HIDDEN}launch"
"""Marks runs of `mloc launch`."""

SLO_TAG = f"{_HIDDEN}slo_seconds"
"""Seconds from submission within which the run should be done."""

SLO_MISSED_TAG = "mloc/slo_missed"
"""Seconds by which the run is late; the last word when it has ended."""

SUBMITTED_TAG = f"{_HIDDEN}submitted_at"
"""When the run's tasks were submitted, in seconds since 1970; when it was created, without it."""

DEAD_LETTER_TAG = "mloc/dead_letter"
"""Ids of tasks that failed for good, comma-joined: a person decides what becomes of them."""

PROCESS_TAG = f"{_HIDDEN}process"
"""Names the `mloc run` that carries a run, as `this_process` does: it is none of the fleet's.

Read it with `process_of`: Dagster's UI gives it to a re-execution, too.
"""

PARENT_TAG = "dagster/parent_run_id"
"""Dagster's own, on what was re-executed."""

RESULTS_TAG = f"{_HIDDEN}results"
"""Where an `mloc run` writes, without the credentials that its URL may hold."""


def launched_with(command: str) -> dict[str, str]:
    """Returns the tag that says who launched a run with a command, such as `mloc run`."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        return {USER_TAG: command}
    return {USER_TAG: f"{user} ({command})"}


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
        steps: What holds its steps, and starts their names.
        task_type: What it does; empty in runs of earlier versions.
        depends_on: Nodes of the same template.
    """

    task_id: str
    node: str
    steps: str
    task_type: str = field(default="", compare=False)
    depends_on: tuple[str, ...] = field(default=(), compare=False)

    def owns(self, step_key: str) -> bool:
        """Returns whether a step belongs to the task."""
        return step_key.partition(".")[0] == self.steps

    @property
    def last_step(self) -> str:
        """The step after which it is done."""
        return f"{self.steps}.export"


def template_tags(
    name: str,
    nodes: Iterable[tuple[str, str, Iterable[str]]],
    *,
    owner: str,
    labels: Mapping[str, str],
) -> dict[str, str]:
    """Returns the tags that tell the control plane what a run is, without its template.

    Args:
        name: The template's.
        nodes: Name, task type and upstream nodes of each task, in order.
        owner: The template's owner; may be empty.
        labels: The template's labels.
    """
    known = [(node, task_type, tuple(upstream)) for node, task_type, upstream in nodes]
    edges = [(node, each) for node, _, upstream in known for each in upstream]
    tags = {
        TEMPLATE_TAG: name[:63],
        NODES_TAG: ",".join(node for node, _, _ in known),
        TASK_TYPES_TAG: ",".join(task_type for _, task_type, _ in known),
        DEPENDS_ON_TAG: urlencode(edges),
        OWNER_TAG: owner,
        LABELS_TAG: urlencode(labels),
    }
    return {tag: value for tag, value in tags.items() if value}


def run_labels(tags: Mapping[str, str]) -> dict[str, str]:
    """Returns the labels of a run's template."""
    return dict(parse_qsl(tags.get(LABELS_TAG, ""), keep_blank_values=True))


def run_tasks(job_name: str, tags: Mapping[str, str], workflow_id: str) -> tuple[RunTask, ...]:
    """Returns the tasks of a run of a template's job; none when the run is no such thing."""
    nodes = [each for each in tags.get(NODES_TAG, "").split(",") if each]
    types = tags.get(TASK_TYPES_TAG, "").split(",")
    edges = parse_qsl(tags.get(DEPENDS_ON_TAG, ""))
    single = len(nodes) == 1
    return tuple(
        RunTask(
            task_id=workflow_id if single else f"{workflow_id}-{node}",
            node=node,
            steps=f"{job_name}__{'task' if single else op_name(node)}",
            task_type=types[place] if place < len(types) else "",
            depends_on=tuple(upstream for each, upstream in edges if each == node),
        )
        for place, node in enumerate(nodes)
    )


def workflow_of(run_id: str, tags: Mapping[str, str]) -> str:
    """Returns the id that the tasks of a run share.

    A retry from failure goes on with the tasks of the run that it retries; a resumed task names
    its own; everything else starts anew.
    """
    from mloc_dagster.services import RESUME_RETRY_TAG, ROOT_RUN_ID_TAG

    if WORKFLOW_TAG in tags:
        return tags[WORKFLOW_TAG]
    if tags.get(RESUME_RETRY_TAG) == "true":
        return tags.get(ROOT_RUN_ID_TAG, run_id)
    return run_id


def this_process() -> str:
    """Returns what tells this process from all others that are or were.

    Returns:
        Host, pid, start, and the namespace in which the pid is that of the process.
    """
    return f"{socket.gethostname()}:{os.getpid()}:{_started(os.getpid())}:{_namespace()}"


def process_of(tags: Mapping[str, str]) -> str | None:
    """Returns the process of the `mloc run` that carries a run; None for other runs."""
    return None if PARENT_TAG in tags else tags.get(PROCESS_TAG)


def may_be_alive(process: str) -> bool:
    """Tells whether a process, as `this_process` named it, may still run."""
    host, pid, started, *namespace = process.split(":")
    if host != socket.gethostname() or namespace != [_namespace()]:
        return True  # cannot be told from here
    return _started(int(pid)) == started


def _namespace() -> str:
    return "".join(each for each in str(Path("/proc/self/ns/pid").readlink()) if each.isdigit())


def _started(pid: int) -> str:
    import psutil

    try:
        return str(int(psutil.Process(pid).create_time()))
    except psutil.NoSuchProcess:
        return ""
