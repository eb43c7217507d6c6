"""The Python client of the HTTP API, for threads and for asyncio; docs/client.md shows all of it.

What it sends and returns are the models of `mloc_dagster.wire`.
"""

from __future__ import annotations

from mloc_dagster.client.async_client import AsyncClient
from mloc_dagster.client.client import Client
from mloc_dagster.client.errors import ApiAwayError, ApiError, ApiRefusedError, NotFoundError
from mloc_dagster.client.paging import NotEndedError, is_workflow_id
from mloc_dagster.client.template_body import TemplateBody, body_of, body_of_file
from mloc_dagster.client.transport import Address, configured_url, stack_api

__all__ = [
    "Address",
    "ApiAwayError",
    "ApiError",
    "ApiRefusedError",
    "AsyncClient",
    "Client",
    "NotEndedError",
    "NotFoundError",
    "TemplateBody",
    "body_of",
    "body_of_file",
    "configured_url",
    "is_workflow_id",
    "stack_api",
]
