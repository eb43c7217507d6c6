from .async_client import AsyncClient as AsyncClient
from .client import Client as Client
from .errors import (
    ApiAwayError as ApiAwayError,
    ApiError as ApiError,
    ApiRefusedError as ApiRefusedError,
    NotFoundError as NotFoundError,
)
from .paging import NotEndedError as NotEndedError, is_workflow_id as is_workflow_id
from .template_body import (
    TemplateBody as TemplateBody,
    body_of_documents as body_of_documents,
    body_of_file as body_of_file,
    documents_of_file as documents_of_file,
)
from .transport import (
    Address as Address,
    configured_url as configured_url,
    stack_api as stack_api,
)
