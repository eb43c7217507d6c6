from .acceptance import Accepted as Accepted, KeyReused as KeyReused
from .database import transaction as transaction
from .ledger import Ledger as Ledger
from .model import (
    FoundWorkflow as FoundWorkflow,
    NewTask as NewTask,
    PlannedRun as PlannedRun,
    Request as Request,
    Submission as Submission,
    TaskChange as TaskChange,
    TaskEntry as TaskEntry,
    TaskFilter as TaskFilter,
)
from .openai_objects import BatchEntry as BatchEntry, FileEntry as FileEntry, PageOf as PageOf
