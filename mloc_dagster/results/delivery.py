"""Handing a task's results to their destination, in a way that may safely be repeated."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import PurePosixPath

from mloc_dagster.errors import DeliveryError, InputError
from mloc_dagster.net.reach import LOCAL, Reach, check_result_path
from mloc_dagster.results.delivery_report import DeliveredItem, DeliveryReport
from mloc_dagster.results.files import BUFFER_BYTES
from mloc_dagster.results.record import RECORD_NAME
from mloc_dagster.results.store import Folder
from mloc_dagster.schema.output import HttpDestination, LocalDestination

__all__ = ["DeliveredItem", "DeliveryReport", "deliver", "find_files"]


def deliver(
    folder: Folder,
    task_id: str,
    destination: HttpDestination | LocalDestination,
    artifacts: Sequence[str],
    *,
    reach: Reach = LOCAL,
    pause: Callable[[float], None] = time.sleep,
) -> DeliveryReport:
    """Sends `responses.json` and the artifacts over HTTP, or copies the artifacts on the store.

    Args:
        folder: The task's folder, complete.
        task_id: The task.
        destination: Where to.
        artifacts: Files and folders of the task's folder.
        reach: Which addresses and variables of the environment the task may use.
        pause: Waits between tries.

    Raises:
        DeliveryError: If an artifact is missing, the receiver refuses, or stays unreachable.
        InputError: If a header or the URL needs an environment variable that is not set, or a
            local path leaves the store, or the task may not use one of them.
    """
    if isinstance(destination, LocalDestination):
        return _copy(folder, destination, artifacts)
    from mloc_dagster.results.http_delivery import send

    return DeliveryReport(
        items=tuple(send(folder, task_id, destination, find_files(folder, artifacts), pause, reach))
    )


def find_files(folder: Folder, artifacts: Sequence[str]) -> list[str]:
    """Returns the files that the artifacts stand for, each once.

    Raises:
        DeliveryError: If an artifact is not there.
    """
    files: dict[str, None] = {}
    for artifact in artifacts:
        name = artifact.rstrip("/")
        below = folder.list(name, recursive=True)
        if not below and not folder.exists(name):
            raise DeliveryError(f"cannot deliver {artifact!r}: {folder.url} has no such file")
        files.update(dict.fromkeys(below or [name]))
    return list(files)


def _copy(
    folder: Folder, destination: LocalDestination, artifacts: Sequence[str]
) -> DeliveryReport:
    path = destination.path
    # Old templates name absolute paths of the machine they were written on.
    if path is None or PurePosixPath(path).is_absolute():
        return DeliveryReport()
    below = str(PurePosixPath(path))
    if below == ".":  # the results root, where the task's own folder lies already
        return DeliveryReport()
    check_result_path(below)
    target = folder.store.folder(below)
    first = folder.store.folder(below.split("/")[0])
    if first.exists(RECORD_NAME):
        raise InputError(f"output.destination.path {path!r} is the folder of task {first.name!r}")
    items: list[DeliveredItem] = []
    for name in find_files(folder, artifacts):
        with folder.open(name) as source, target.create(name) as copy:
            while block := source.read(BUFFER_BYTES):
                copy.write(block)
        items.append(
            DeliveredItem(name=name, target=f"{target.url}/{name}", size=folder.size(name))
        )
    return DeliveryReport(items=tuple(items))
