from .asked_model import (
    asked_spec as asked_spec,
    asked_template as asked_template,
    call_rows as call_rows,
)
from .dead_letters import failed_steps as failed_steps, why_not_begun as why_not_begun
from .launch import (
    Launched as Launched,
    check_launchable as check_launchable,
    launch_template as launch_template,
)
from .named_indexes import (
    index_view as index_view,
    index_views as index_views,
    pinned as pinned,
    search_reply as search_reply,
    search_template as search_template,
)
from .openai_batch import batch_template as batch_template
from .retry import retry_run as retry_run, retry_task as retry_task
from .steps import (
    Setbacks as Setbacks,
    failures_of as failures_of,
    setbacks_of as setbacks_of,
    steps_of as steps_of,
)
from .task_status import (
    status_of as status_of,
    summary_of as summary_of,
    training_status as training_status,
)
from .workflows import (
    Workflow as Workflow,
    cancel as cancel,
    find_workflows as find_workflows,
    launcher_of as launcher_of,
    look_up as look_up,
    results_of as results_of,
)
