"""`plan.json` on the store: the plan, and a checksum over it as its last field."""

from __future__ import annotations

import re
from zlib import crc32

from pydantic import ValidationError

from mloc_dagster.errors import DamagedFileError
from mloc_dagster.planning.plan import PLAN_NAME, Plan
from mloc_dagster.results.store import Folder

_SEALED = re.compile(rb'(.*),"crc32":"([0-9a-f]{8})"\}\s*', re.DOTALL)


def write_plan(folder: Folder, plan: Plan) -> None:
    """Writes the plan: with it the input is complete."""
    text = plan.model_dump_json().encode()
    folder.write_bytes(PLAN_NAME, b'%b,"crc32":"%08x"}' % (text[:-1], crc32(text)))


def read_plan(folder: Folder) -> Plan | None:
    """Returns the task's plan, or None before it was planned.

    Raises:
        DamagedFileError: If it is not the plan that was written.
    """
    try:
        data = folder.read_bytes(PLAN_NAME)
    except FileNotFoundError:
        return None
    sealed = _SEALED.fullmatch(data)  # plans of earlier versions have no checksum
    text = data if sealed is None else sealed[1] + b"}"
    if sealed is not None and crc32(text) != int(sealed[2], 16):
        raise damaged(folder, PLAN_NAME, "its checksum is another one")
    try:
        return Plan.model_validate_json(text)
    except ValidationError as error:
        reason = error.errors(include_url=False)[0]["msg"]
        raise damaged(folder, PLAN_NAME, f"it is no plan: {reason}") from error


def damaged(folder: Folder, name: str, reason: str) -> DamagedFileError:
    """Returns what to raise for a file without which a task's rows cannot be told from others."""
    return DamagedFileError(
        f"{folder.url}/{name} is damaged ({reason}), and tells no more what the task's rows are. "
        f"Start over: mloc run --resume {folder.name} --fresh; over the API, submit the template "
        "again"
    )
