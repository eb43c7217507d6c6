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
    plan_op as plan_op,
    workflow_id as workflow_id,
)
from .run_tags import (
    DEAD_LETTER_TAG as DEAD_LETTER_TAG,
    DEPENDS_ON_TAG as DEPENDS_ON_TAG,
    LABELS_TAG as LABELS_TAG,
    LAUNCH_TAG as LAUNCH_TAG,
    NODES_TAG as NODES_TAG,
    OWNER_TAG as OWNER_TAG,
    PROCESS_TAG as PROCESS_TAG,
    RESULTS_TAG as RESULTS_TAG,
    SLO_MISSED_TAG as SLO_MISSED_TAG,
    SLO_TAG as SLO_TAG,
    SUBMITTED_TAG as SUBMITTED_TAG,
    TASK_TYPES_TAG as TASK_TYPES_TAG,
    TEMPLATE_TAG as TEMPLATE_TAG,
    WORKFLOW_TAG as WORKFLOW_TAG,
    RunTask as RunTask,
    may_be_alive as may_be_alive,
    op_name as op_name,
    run_labels as run_labels,
    run_tasks as run_tasks,
    template_tags as template_tags,
    this_process as this_process,
    workflow_of as workflow_of,
)
from .shard import CHANGED_MODEL_TAG as CHANGED_MODEL_TAG, shard_op as shard_op
