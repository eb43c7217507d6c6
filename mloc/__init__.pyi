from mloc_dagster import __version__ as __version__
from mloc_dagster.assets import (
    MlocTemplate as MlocTemplate,
    mloc_assets as mloc_assets,
    mloc_sources as mloc_sources,
)
from mloc_dagster.client import AsyncClient as AsyncClient, Client as Client
from mloc_dagster.compile import Diagnostic as Diagnostic
from mloc_dagster.errors import (
    DataError as DataError,
    InputError as InputError,
    MlocError as MlocError,
    TemplateError as TemplateError,
)
from mloc_dagster.fleet import mloc_executor as mloc_executor
from mloc_dagster.python import (
    Progress as Progress,
    Result as Result,
    RowStream as RowStream,
    RunInterrupted as RunInterrupted,
    Session as Session,
    Submission as Submission,
    TaskFailedError as TaskFailedError,
    TemplateWarning as TemplateWarning,
    estimate as estimate,
    result as result,
    run as run,
    stream as stream,
    submit as submit,
    template as template,
    validate as validate,
)

session = Session
