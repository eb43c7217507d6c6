from .aggregate import aggregate_op as aggregate_op, curves_image as curves_image
from .batch import (
    BatchConfig as BatchConfig,
    batch_shard as batch_shard,
    hand_out as hand_out,
    plan_batch as plan_batch,
)
from .export import export_responses as export_responses
from .failures import step_error as step_error
from .io import TaskRef as TaskRef, reference_io_manager as reference_io_manager
from .plan import (
    RETRY_ERRORS_TAG as RETRY_ERRORS_TAG,
    WORKFLOW_TAG as WORKFLOW_TAG,
    plan_op as plan_op,
    workflow_id as workflow_id,
)
from .run_tags import (
    DEAD_LETTER_TAG as DEAD_LETTER_TAG,
    NODES_TAG as NODES_TAG,
    PROCESS_TAG as PROCESS_TAG,
    SLO_MISSED_TAG as SLO_MISSED_TAG,
    SLO_TAG as SLO_TAG,
    SUBMITTED_TAG as SUBMITTED_TAG,
    RunTask as RunTask,
    op_name as op_name,
    run_tasks as run_tasks,
)
from .shard import CHANGED_MODEL_TAG as CHANGED_MODEL_TAG, shard_op as shard_op
