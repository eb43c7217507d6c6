from .aggregate import (
    RESPONSES_NAME as RESPONSES_NAME,
    RowCounts as RowCounts,
    aggregate_rows as aggregate_rows,
    allowed_errors as allowed_errors,
    budget_problem as budget_problem,
    count_rows as count_rows,
    read_summary as read_summary,
)
from .batch_members import (
    Batch as Batch,
    Member as Member,
    MemberOutcome as MemberOutcome,
    Outcome as Outcome,
    batch_folder as batch_folder,
    cancelled_members as cancelled_members,
    delete_rows as delete_rows,
    mark_cancelled as mark_cancelled,
    read_batch as read_batch,
    read_outcome as read_outcome,
    write_batch as write_batch,
    write_outcome as write_outcome,
)
from .citations import (
    ABSTENTION as ABSTENTION,
    abstains as abstains,
    check_citations as check_citations,
    citation_spans as citation_spans,
    without_citations as without_citations,
)
from .columns import (
    ColumnWriter as ColumnWriter,
    TaskColumns as TaskColumns,
    rows_with_columns as rows_with_columns,
    schema_of as schema_of,
    task_columns as task_columns,
)
from .delivery import DeliveryReport as DeliveryReport, deliver as deliver
from .evaluation import refused_by_gate as refused_by_gate
from .export import export_results as export_results
from .export_row import (
    MORE_COLUMNS as MORE_COLUMNS,
    RESERVED_COLUMNS as RESERVED_COLUMNS,
    ROW_COLUMNS as ROW_COLUMNS,
    column_called as column_called,
    export_rows as export_rows,
    free_name as free_name,
    prompt_text as prompt_text,
)
from .files import (
    BUFFER_BYTES as BUFFER_BYTES,
    TEMPORARY_PREFIX as TEMPORARY_PREFIX,
    LocalFiles as LocalFiles,
)
from .follow import RowFollower as RowFollower
from .history import (
    History as History,
    Kind as Kind,
    Pace as Pace,
    TrainingHistory as TrainingHistory,
    TrainingKind as TrainingKind,
    read_history as read_history,
    read_training_history as read_training_history,
)
from .journal import (
    Brief as Brief,
    CallBegun as CallBegun,
    CallKey as CallKey,
    CallResult as CallResult,
    Journal as Journal,
    ModelTurn as ModelTurn,
    Steps as Steps,
    journal_steps as journal_steps,
)
from .manifest import (
    MANIFEST_NAME as MANIFEST_NAME,
    Manifest as Manifest,
    ManifestEntry as ManifestEntry,
    is_own_name as is_own_name,
    read_manifest as read_manifest,
    verify_manifest as verify_manifest,
    write_manifest as write_manifest,
)
from .openai_answer import AnswerChunks as AnswerChunks, answer_body as answer_body
from .openai_batch import BatchFiles as BatchFiles, whole_requests as whole_requests
from .part_files import (
    Part as Part,
    finished_rows as finished_rows,
    list_parts as list_parts,
    part_name as part_name,
    part_rows as part_rows,
    read_rows as read_rows,
)
from .passage_scores import ids_of as ids_of, is_relevant as is_relevant
from .rates import UNPRICED as UNPRICED, Rates as Rates, TokenRates as TokenRates
from .record import (
    RECORD_NAME as RECORD_NAME,
    TaskRecord as TaskRecord,
    damaged as damaged,
    forget as forget,
    masked_spec as masked_spec,
    plan_of as plan_of,
    put_aside as put_aside,
    put_back as put_back,
    read_plan as read_plan,
    read_record as read_record,
    submitted_template as submitted_template,
    write_plan as write_plan,
    write_record as write_record,
)
from .row_batch import BatchRow as BatchRow, RowBatch as RowBatch
from .row_cache import CACHE_FOLDER as CACHE_FOLDER, RowCache as RowCache
from .rows import (
    BASE64 as BASE64,
    BUDGET_FAULT as BUDGET_FAULT,
    SERVER_FAULT as SERVER_FAULT,
    UPSTREAM_FAULT as UPSTREAM_FAULT,
    FunctionCall as FunctionCall,
    InputRow as InputRow,
    Judgement as Judgement,
    Message as Message,
    OutputRow as OutputRow,
    Passage as Passage,
    Prompt as Prompt,
    ServerFault as ServerFault,
    SourceRow as SourceRow,
    Statement as Statement,
    TokenLogprob as TokenLogprob,
    ToolCall as ToolCall,
    ToolCallDelta as ToolCallDelta,
    failed_row as failed_row,
)
from .scores import holds_text as holds_text, same_text as same_text
from .shard_files import (
    InFlight as InFlight,
    ShardWriter as ShardWriter,
    delete_in_flight as delete_in_flight,
    keep_to_model as keep_to_model,
    read_in_flight as read_in_flight,
    write_in_flight as write_in_flight,
)
from .spans import Span as Span, covered_s as covered_s
from .spend import (
    BudgetReached as BudgetReached,
    ShardSpend as ShardSpend,
    Spend as Spend,
    Spent as Spent,
    first_reached as first_reached,
    not_computed as not_computed,
    read_spend as read_spend,
    spend_in_parts as spend_in_parts,
    write_spend as write_spend,
)
from .store import (
    Folder as Folder,
    ResultStore as ResultStore,
    check_name as check_name,
    check_task_id as check_task_id,
    inside as inside,
    open_store as open_store,
    results_at as results_at,
)
from .summary import (
    SUMMARY_NAME as SUMMARY_NAME,
    Latencies as Latencies,
    ModelUsage as ModelUsage,
    Ranking as Ranking,
    Scores as Scores,
    TaskSummary as TaskSummary,
    UsageCounter as UsageCounter,
    usage_by_model as usage_by_model,
)
from .tables import (
    read_schema as read_schema,
    read_tables as read_tables,
    row_schema as row_schema,
)
from .tally import Tally as Tally
from .task_report import TaskReport as TaskReport
from .tool_calls import answer_text as answer_text, known_calls as known_calls
from .training_summary import (
    ARCHIVES_NAME as ARCHIVES_NAME,
    BEFORE_NAME as BEFORE_NAME,
    TRAINING_NAME as TRAINING_NAME,
    TrainingSummary as TrainingSummary,
    artifact_names as artifact_names,
    compared as compared,
    read_training as read_training,
    write_training as write_training,
    write_training_result as write_training_result,
)
from .trajectories import (
    EXAMPLE_COLUMNS as EXAMPLE_COLUMNS,
    find_trajectory as find_trajectory,
    read_examples as read_examples,
    read_trajectories as read_trajectories,
)
