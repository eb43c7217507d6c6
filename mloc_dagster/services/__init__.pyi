from .advisory_locks import AdvisoryLock as AdvisoryLock
from .event_log import (
    EventLog as EventLog,
    EventRow as EventRow,
    captured as captured,
    capturing as capturing,
    newest_id as newest_id,
    rows_after as rows_after,
    rows_in as rows_in,
    rows_of_type as rows_of_type,
    setback_rows as setback_rows,
)
from .instance import (
    open_fleet_instance as open_fleet_instance,
    open_instance as open_instance,
    pool_connections as pool_connections,
)
from .internals import (
    DISALLOWED_NAMES as DISALLOWED_NAMES,
    PARENT_RUN_ID_TAG as PARENT_RUN_ID_TAG,
    PRIORITY_TAG as PRIORITY_TAG,
    RESUME_RETRY_TAG as RESUME_RETRY_TAG,
    ROOT_RUN_ID_TAG as ROOT_RUN_ID_TAG,
    TAGS_TO_MAYBE_OMIT_ON_RETRY as TAGS_TO_MAYBE_OMIT_ON_RETRY,
    ConfigurableClassData as ConfigurableClassData,
    DaemonIterator as DaemonIterator,
    DagsterRunAlreadyExists as DagsterRunAlreadyExists,
    EngineEventData as EngineEventData,
    EventLogCursor as EventLogCursor,
    InstanceRef as InstanceRef,
    IWorkspaceProcessContext as IWorkspaceProcessContext,
    QueuedRunCoordinatorDaemon as QueuedRunCoordinatorDaemon,
    RunTagsTable as RunTagsTable,
    SerializableErrorInfo as SerializableErrorInfo,
    SpanMarker as SpanMarker,
    SqlEventLogStorage as SqlEventLogStorage,
    SqlRunStorage as SqlRunStorage,
    StepEventStatus as StepEventStatus,
    UnresolvedAssetJobDefinition as UnresolvedAssetJobDefinition,
    open_webserver as open_webserver,
    run_daemons as run_daemons,
    serializable_error_info_from_exc_info as serializable_error_info_from_exc_info,
)
from .notifications import PATIENCE as PATIENCE, Notifications as Notifications
from .run_rows import (
    RunRow as RunRow,
    last_durations_s as last_durations_s,
    queued_runs as queued_runs,
    runs_after as runs_after,
    runs_tagged as runs_tagged,
)
from .stack.answers import (
    api_answers as api_answers,
    check_postgres as check_postgres,
    code_answers as code_answers,
    daemon_answers as daemon_answers,
    dispatcher_answers as dispatcher_answers,
    postgres_answers as postgres_answers,
    redis_answers as redis_answers,
    webserver_answers as webserver_answers,
)
from .stack.dagster_home import (
    DAEMON_WORKSPACE as DAEMON_WORKSPACE,
    LIBRARY_LOCATION as LIBRARY_LOCATION,
    SUBMITTED_LOCATION as SUBMITTED_LOCATION,
    fleet_instance as fleet_instance,
)
from .stack.lifecycle import (
    clear_remains as clear_remains,
    kill_stack as kill_stack,
    require_postgres_free as require_postgres_free,
    start_stack as start_stack,
    starting_alone as starting_alone,
    stop_stack as stop_stack,
)
from .stack.plan import (
    STACK as STACK,
    StackPlan as StackPlan,
    addresses as addresses,
    choose_port as choose_port,
    is_free as is_free,
    make_plan as make_plan,
    reachable as reachable,
    saved_plan as saved_plan,
)
from .stack.processes import stack_processes as stack_processes
from .stack.supervisor import (
    ComponentState as ComponentState,
    SupervisorGone as SupervisorGone,
    component_states as component_states,
)
from .storages import DATABASE_AWAY as DATABASE_AWAY, QUEUE_CHANNEL as QUEUE_CHANNEL
