"""The address of a task's page in the viewer, where it is known that an API serves it."""

import dagster as dg

from mloc_dagster.settings import settings
from mloc_dagster.viewer import batch_address, task_address


def viewer_metadata(task_id: str) -> dict[str, dg.MetadataValue]:
    """Returns the link that Dagster shows beside a task's results; nothing without an API."""
    address = viewer_address(task_id)
    return {} if address is None else {"viewer": dg.MetadataValue.url(address)}


def batch_metadata(batch_id: str) -> dict[str, dg.MetadataValue]:
    """Returns the link to the pages of a batch's tasks; nothing without an API."""
    url = settings().api_url
    return {"viewer": dg.MetadataValue.url(batch_address(url, batch_id))} if url else {}


def viewer_address(task_id: str) -> str | None:
    """Returns where the API of `MLOC_API_URL` shows a task; in a stack that is the stack's own."""
    url = settings().api_url
    return task_address(url, task_id) if url else None
