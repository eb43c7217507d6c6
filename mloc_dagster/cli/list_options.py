"""Which tasks `mloc list` shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mloc_dagster.errors import InputError, UnknownNameError
from mloc_dagster.wire import TaskState


@dataclass(frozen=True, slots=True, kw_only=True)
class ListOptions:
    """The command line of `mloc list`; see its help."""

    statuses: tuple[str, ...] = ()
    owner: str | None = None
    name: str | None = None
    task_type: str | None = None
    labels: tuple[str, ...] = ()
    worker: str | None = None
    since: str | None = None
    limit: int = 20
    as_json: bool = False

    @property
    def states(self) -> Sequence[TaskState]:
        """The states that are wanted; none means all.

        Raises:
            UnknownNameError: If one is none.
        """
        for each in self.statuses:
            if each.upper() not in TaskState.__members__:
                raise UnknownNameError("status", each, TaskState.__members__)
        return [TaskState[each.upper()] for each in self.statuses]

    @property
    def label_map(self) -> Mapping[str, str]:
        """The labels that are wanted.

        Raises:
            InputError: If one is not `key=value`.
        """
        for each in self.labels:
            if not each.partition("=")[1]:
                raise InputError(f"--label {each!r}: expected KEY=VALUE")
        return dict(each.split("=", 1) for each in self.labels)

    @property
    def nothing_found(self) -> str:
        """What is said where the list is empty."""
        filters = (self.owner, self.name, self.task_type, self.worker, self.since)
        if any(filters) or self.statuses or self.labels:
            return "no task matches"
        return "no task yet"

    def check_direct(self) -> None:
        """Refuses what only the API can tell.

        Raises:
            InputError: If there is any of it.
        """
        asked = {
            "--owner": self.owner,
            "--name": self.name,
            "--type": self.task_type,
            "--label": self.labels,
            "--worker": self.worker,
            "--since": self.since,
        }
        given = [option for option, value in asked.items() if value]
        if given:
            raise InputError(
                f"{', '.join(given)}: only the API looks for that, and none answers: start it with"
                " `mloc up`, or set MLOC_API_URL"
            )
