"""`task.json`: the submission of a task, written before anything else of it."""

from __future__ import annotations

from itertools import islice

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, JsonValue, ValidationError

from mloc_dagster.errors import InputError, UnknownNameError
from mloc_dagster.net.reach import Origin
from mloc_dagster.results.literal_secrets import masked_spec, put_aside, put_back
from mloc_dagster.results.store import Folder

RECORD_NAME = "task.json"

# Enough to find the neighbour of a mistyped id, without listing a large bucket to the end.
_IDS_TO_COMPARE = 10_000


class TaskRecord(BaseModel):
    """What was submitted.

    Attributes:
        task_id: The task.
        workflow_id: What all tasks of one submission share.
        run_id: The Dagster run.
        template: The effective template: overrides applied, `${…}` references as written, literal
            secrets masked in the file only (`literal_secrets`).
        template_name: Its `metadata.name`.
        node: Which task of the template this is.
        task_type: What it does.
        spec: The node's spec after merging, secrets masked.
        upstream: Task ids of the nodes it depends on, by node name.
        submitted_at: When it was accepted.
        mloc_version: Who accepted it.
        origin: Where it came from, which decides what it may reach (`net.reach`).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    task_id: str
    workflow_id: str
    run_id: str
    template: dict[str, JsonValue]
    template_name: str
    node: str
    task_type: str
    spec: dict[str, JsonValue]
    upstream: dict[str, str] = Field(default_factory=dict)
    submitted_at: AwareDatetime
    mloc_version: str
    origin: Origin = "local"


def write_record(folder: Folder, record: TaskRecord) -> None:
    """Writes `task.json`; it is durable when this returns."""
    public = put_aside(folder.store, folder.name, record.template)
    shown = record.model_copy(update={"template": public, "spec": masked_spec(record.spec)})
    folder.write_bytes(RECORD_NAME, shown.model_dump_json(indent=2).encode() + b"\n")


def read_record(folder: Folder) -> TaskRecord:
    """Reads `task.json`, in which literal secrets are masked.

    Args:
        folder: The task's folder.

    Raises:
        InputError: If there is no such task (the nearest id is named), or its record is not one.
    """
    try:
        data = folder.read_bytes(RECORD_NAME)
    except FileNotFoundError:
        known = islice(folder.store.task_ids(), _IDS_TO_COMPARE)
        raise UnknownNameError(f"task on {folder.store.url}", folder.name, known) from None
    try:
        return TaskRecord.model_validate_json(data)
    except ValidationError as error:
        reason = error.errors(include_url=False)[0]["msg"]
        raise InputError(
            f"{folder.url}/{RECORD_NAME} is no task record ({reason}): it is damaged, or not "
            "mloc's; submit the template again"
        ) from error


def submitted_template(folder: Folder, record: TaskRecord) -> dict[str, JsonValue]:
    """Returns the template of a record that was read, as it was submitted.

    Raises:
        TerminalError: If literal secrets of it are gone.
    """
    return put_back(folder.store, folder.name, record.template)
