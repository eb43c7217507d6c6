from .access import (
    fleet_url as fleet_url,
    open_engine as open_engine,
    require_fleet as require_fleet,
)
from .calls import (
    AnswerPiece as AnswerPiece,
    Call as Call,
    FailurePiece as FailurePiece,
    Piece as Piece,
    ReasoningPiece as ReasoningPiece,
    RowsPiece as RowsPiece,
    SignOfLife as SignOfLife,
    TextPiece as TextPiece,
    ToolCallPiece as ToolCallPiece,
)
from .claims import (
    Claim as Claim,
    Leases as Leases,
    StopReason as StopReason,
    TicketClaims as TicketClaims,
    TicketState as TicketState,
)
from .dagster.executor import execution_config as execution_config, mloc_executor as mloc_executor
from .dagster.internals import (
    CodePointer as CodePointer,
    CustomPointer as CustomPointer,
    KnownExecutionState as KnownExecutionState,
    LaunchRunContext as LaunchRunContext,
    ReconstructableRepository as ReconstructableRepository,
    ResumeRunContext as ResumeRunContext,
    RunWorkerStatus as RunWorkerStatus,
    create_execution_plan as create_execution_plan,
    reconstruct_repository_def_from_pointer as reconstruct_repository_def_from_pointer,
    snapshot_from_execution_plan as snapshot_from_execution_plan,
)
from .dagster.jobs import (
    CONTENT_TAG as CONTENT_TAG,
    LIBRARY as LIBRARY,
    Jobs as Jobs,
    job_origin as job_origin,
    submitted_pointer as submitted_pointer,
)
from .dagster.messages import (
    Requeue as Requeue,
    requeue_data as requeue_data,
    requeue_in as requeue_in,
)
from .dagster.run_launcher import (
    FleetRunLauncher as FleetRunLauncher,
    carries_itself as carries_itself,
)
from .dagster.run_worker import RunWorker as RunWorker
from .dagster.tickets import (
    fleet_tags as fleet_tags,
    run_ticket as run_ticket,
    run_ticket_id as run_ticket_id,
)
from .engine import (
    RUNS_QUEUE as RUNS_QUEUE,
    FleetEngine as FleetEngine,
    StepTicket as StepTicket,
    TicketStatus as TicketStatus,
    WorkerInfo as WorkerInfo,
    WorkerStatus as WorkerStatus,
)
from .hardware import (
    CPU_QUEUE as CPU_QUEUE,
    GPU_QUEUE as GPU_QUEUE,
    GpuDevice as GpuDevice,
    Hardware as Hardware,
    Requirements as Requirements,
    misfit as misfit,
    queue_of as queue_of,
    queues_for as queues_for,
    requirements_of as requirements_of,
)
from .memory.engine import MemoryFleetEngine as MemoryFleetEngine
from .placement import (
    WARM_PATIENCE_S as WARM_PATIENCE_S,
    queue_wake as queue_wake,
    suited_workers as suited_workers,
    worker_wake as worker_wake,
)
from .redis.engine import RedisFleetEngine as RedisFleetEngine
from .redis.records import (
    connect as connect,
    heartbeat_key as heartbeat_key,
    lease_key as lease_key,
    members_key as members_key,
    ticket_key as ticket_key,
)
from .slo import (
    PromisedRun as PromisedRun,
    QueuedRun as QueuedRun,
    estimate_s as estimate_s,
    late_s as late_s,
    queue_order as queue_order,
    raised_priorities as raised_priorities,
    slack_s as slack_s,
    wanted_order as wanted_order,
)
from .worker.calls import CallServer as CallServer, answer_call as answer_call, task_of as task_of
from .worker.detection import detect_hardware as detect_hardware
from .worker.group import (
    gpu_groups as gpu_groups,
    group_environment as group_environment,
    run_worker_group as run_worker_group,
)
from .worker.models import (
    model_cache as model_cache,
    models_in as models_in,
    new_model_cache as new_model_cache,
    process_model_cache as process_model_cache,
)
from .worker.process import (
    StepWorker as StepWorker,
    Worker as Worker,
    run_worker_process as run_worker_process,
)
