from .checks import estimate as estimate, validate as validate
from .errors import (
    RunInterrupted as RunInterrupted,
    TaskFailedError as TaskFailedError,
    TemplateWarning as TemplateWarning,
)
from .progress import Progress as Progress
from .running import run as run
from .session import Session as Session
from .streaming import RowStream as RowStream, stream as stream
from .submission import Submission as Submission, result as result, submit as submit
from .task_result import Result as Result
from .templates import template as template
