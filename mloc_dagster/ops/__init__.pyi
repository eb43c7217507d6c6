from .aggregate import aggregate_op as aggregate_op
from .batch import (
    BatchConfig as BatchConfig,
    batch_shard as batch_shard,
    hand_out as hand_out,
    plan_batch as plan_batch,
)
from .checks import (
    checks_of as checks_of,
    judge_rows as judge_rows,
    judge_training as judge_training,
)
from .columns import (
    COLUMN_LINEAGE as COLUMN_LINEAGE,
    COLUMN_SCHEMA as COLUMN_SCHEMA,
    column_lineage as column_lineage,
    dataset_of as dataset_of,
    expected_schema as expected_schema,
    input_name as input_name,
)
from .export import (
    RESULT as RESULT,
    evaluation_key as evaluation_key,
    export_op as export_op,
)
from .failures import step_error as step_error
from .io import (
    IO_MANAGER_KEY as IO_MANAGER_KEY,
    mloc_io_manager as mloc_io_manager,
)
from .plan import (
    RETRY_ERRORS_TAG as RETRY_ERRORS_TAG,
    ROWS as ROWS,
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
    PARENT_TAG as PARENT_TAG,
    PROCESS_TAG as PROCESS_TAG,
    RESULTS_TAG as RESULTS_TAG,
    SLO_MISSED_TAG as SLO_MISSED_TAG,
    SLO_TAG as SLO_TAG,
    SUBMITTED_TAG as SUBMITTED_TAG,
    TASK_TYPES_TAG as TASK_TYPES_TAG,
    TEMPLATE_TAG as TEMPLATE_TAG,
    USER_TAG as USER_TAG,
    WORKFLOW_TAG as WORKFLOW_TAG,
    RunTask as RunTask,
    launched_with as launched_with,
    may_be_alive as may_be_alive,
    op_name as op_name,
    process_of as process_of,
    run_labels as run_labels,
    run_tasks as run_tasks,
    template_tags as template_tags,
    this_process as this_process,
    workflow_of as workflow_of,
)
from .shard import CHANGED_MODEL_TAG as CHANGED_MODEL_TAG, shard_op as shard_op
from .sources import known_source as known_source, sources_of as sources_of
