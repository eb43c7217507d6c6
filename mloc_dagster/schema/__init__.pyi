from .agent import (
    Agent as Agent,
    AgentBudget as AgentBudget,
    AgentLoop as AgentLoop,
    AgentSpec as AgentSpec,
    ToolOrWorker as ToolOrWorker,
    Worker as Worker,
)
from .agent_tools import (
    TOOL_SECRETS as TOOL_SECRETS,
    AgentTool as AgentTool,
    HttpTool as HttpTool,
    McpTool as McpTool,
    PythonTool as PythonTool,
    RagTool as RagTool,
    SearchTool as SearchTool,
    tools_in as tools_in,
)
from .answer_forms import form_problems as form_problems
from .base import (
    HALF_A_CHARACTER as HALF_A_CHARACTER,
    Annotation as Annotation,
    Block as Block,
    Name as Name,
    alternatives as alternatives,
    canonical_json as canonical_json,
    digest_of as digest_of,
    known_names as known_names,
    tags_of as tags_of,
)
from .budget import Limits as Limits
from .data import (
    COMPRESSIONS as COMPRESSIONS,
    DOCUMENT_TYPES as DOCUMENT_TYPES,
    SUFFIXES as SUFFIXES,
    ChatMessage as ChatMessage,
    DatasetData as DatasetData,
    GraphTemplate as GraphTemplate,
    GraphTemplateData as GraphTemplateData,
    InferenceData as InferenceData,
    ListData as ListData,
    MessageTemplate as MessageTemplate,
    OnUpstreamError as OnUpstreamError,
    OpenaiBatchData as OpenaiBatchData,
    TemplateColumn as TemplateColumn,
    TextPart as TextPart,
    TrainingData as TrainingData,
    UpstreamData as UpstreamData,
    data_suffix as data_suffix,
    document_type as document_type,
    hub_only as hub_only,
    is_glob as is_glob,
    names_files as names_files,
    written_as_file as written_as_file,
)
from .engine_type import (
    WEIGHTS as WEIGHTS,
    Demand as Demand,
    EngineType as EngineType,
    Refusal as Refusal,
    changed_options as changed_options,
    engine_types as engine_types,
    find_engine as find_engine,
)
from .engines import (
    adapter_name as adapter_name,
    candidates as candidates,
    certain_engine as certain_engine,
    claim_on as claim_on,
    idle_options as idle_options,
    refusals as refusals,
    refused_in_inference as refused_in_inference,
    shared_options as shared_options,
)
from .evaluation import (
    COMPARING_METRICS as COMPARING_METRICS,
    JUDGED_METRICS as JUDGED_METRICS,
    PASSAGE_METRICS as PASSAGE_METRICS,
    ROW_METRICS as ROW_METRICS,
    RowEvaluation as RowEvaluation,
    RowMetric as RowMetric,
    needs_relevant as needs_relevant,
    passage_metric as passage_metric,
)
from .index import (
    FilterValue as FilterValue,
    Index as Index,
    Metric as Metric,
    Range as Range,
    Search as Search,
)
from .index_engine import (
    IndexEngineType as IndexEngineType,
    find_index_engine as find_index_engine,
    index_engine_types as index_engine_types,
)
from .inference import (
    Inference as Inference,
    Pooling as Pooling,
    Reranking as Reranking,
    StructuredOutputs as StructuredOutputs,
)
from .json_schema import template_json_schema as template_json_schema
from .judge import (
    JudgedRows as JudgedRows,
    JudgeSpec as JudgeSpec,
)
from .legacy import (
    SLO_ANNOTATION as SLO_ANNOTATION,
    SPELLINGS as SPELLINGS,
    KeyPath as KeyPath,
    Spelling as Spelling,
)
from .markers import (
    Code as Code,
    FileRef as FileRef,
    Host as Host,
    LibraryOptions as LibraryOptions,
    Marked as Marked,
    Marker as Marker,
    Path as Path,
    ResultPath as ResultPath,
    Secret as Secret,
    Url as Url,
    hides as hides,
    marked as marked,
    replaced as replaced,
    scalars as scalars,
    secrets_in as secrets_in,
)
from .model import (
    AUTO_TEMPLATE as AUTO_TEMPLATE,
    NO_TEMPLATE as NO_TEMPLATE,
    Adapter as Adapter,
    Model as Model,
    ModelSource as ModelSource,
    TrainedModel as TrainedModel,
    TransformersOptions as TransformersOptions,
)
from .output import (
    BATCH_ERRORS_NAME as BATCH_ERRORS_NAME,
    BATCH_OUTPUT_NAME as BATCH_OUTPUT_NAME,
    CHECKPOINTS_NAME as CHECKPOINTS_NAME,
    FINAL_LORA as FINAL_LORA,
    FINAL_MODEL as FINAL_MODEL,
    HttpDestination as HttpDestination,
    LocalDestination as LocalDestination,
    OutputFormat as OutputFormat,
    artifact_name as artifact_name,
)
from .partitions import (
    ColumnPartitions as ColumnPartitions,
    DailyPartitions as DailyPartitions,
    DynamicPartitions as DynamicPartitions,
    HourlyPartitions as HourlyPartitions,
    MonthlyPartitions as MonthlyPartitions,
    Partitioned as Partitioned,
    Partitions as Partitions,
    StaticPartitions as StaticPartitions,
    TimePartitions as TimePartitions,
    WeeklyPartitions as WeeklyPartitions,
)
from .placeholders import (
    COLUMN_PREFIX as COLUMN_PREFIX,
    UPSTREAM_VALUES as UPSTREAM_VALUES,
    PlaceholderText as PlaceholderText,
    literal as literal,
    parse_placeholders as parse_placeholders,
)
from .resources import (
    Hardware as Hardware,
    Resources as Resources,
    Retries as Retries,
    Schedule as Schedule,
)
from .result import (
    AgentResult as AgentResult,
    LoraTrainingResult as LoraTrainingResult,
    ReusedRows as ReusedRows,
    TrainingResult as TrainingResult,
    Usage as Usage,
)
from .retrieval import (
    Answering as Answering,
    AnswerSpec as AnswerSpec,
    Chunking as Chunking,
    ChunkResult as ChunkResult,
    ChunkSpec as ChunkSpec,
    Documents as Documents,
    IndexResult as IndexResult,
    IndexSpec as IndexSpec,
    IndexState as IndexState,
    JudgeResult as JudgeResult,
    RerankSpec as RerankSpec,
    RetrievedItem as RetrievedItem,
    RetrieveResult as RetrieveResult,
    RetrieveSpec as RetrieveSpec,
)
from .row_filter import (
    RowFilter as RowFilter,
    RowFilterError as RowFilterError,
    parse_filter as parse_filter,
)
from .safe_options import is_plain as is_plain
from .searched import built_in as built_in, searched_indexes as searched_indexes
from .split import SplitPart as SplitPart, parse_split as parse_split
from .task import (
    PPO_ARGUMENTS as PPO_ARGUMENTS,
    DpoSpec as DpoSpec,
    EmbeddingSpec as EmbeddingSpec,
    GrpoSpec as GrpoSpec,
    InferenceSpec as InferenceSpec,
    KtoSpec as KtoSpec,
    LoraSftSpec as LoraSftSpec,
    Metadata as Metadata,
    ModelSpec as ModelSpec,
    OnlineSpec as OnlineSpec,
    PpoSpec as PpoSpec,
    RewardSpec as RewardSpec,
    RlooSpec as RlooSpec,
    RowSpec as RowSpec,
    SftSpec as SftSpec,
    Task as Task,
    TaskSpec as TaskSpec,
    TrainingSpec as TrainingSpec,
)
from .task_type import (
    ANY_TRAINING as ANY_TRAINING,
    Condition as Condition,
    Idle as Idle,
    LibraryText as LibraryText,
    Part as Part,
    TaskType as TaskType,
    all_kinds as all_kinds,
    find_task_type as find_task_type,
    spec_of as spec_of,
    task_types as task_types,
    types_of_kind as types_of_kind,
)
from .template import (
    Graph as Graph,
    Node as Node,
    Template as Template,
    marked_in_spec as marked_in_spec,
    marked_values as marked_values,
)
from .tools import FunctionTool as FunctionTool, NamedToolChoice as NamedToolChoice
from .tracking import Tracker as Tracker
from .training.columns import (
    PROMPT_COLUMNS as PROMPT_COLUMNS,
    Columns as Columns,
    Layout as Layout,
    Record as Record,
    TrainingRow as TrainingRow,
    columns_of as columns_of,
    inline_records as inline_records,
)
from .training.gate import (
    ANSWERLESS_METRICS as ANSWERLESS_METRICS,
    BUILTIN_METRICS as BUILTIN_METRICS,
    CLASSIFIER_METRICS as CLASSIFIER_METRICS,
    Gate as Gate,
    GateError as GateError,
    parse_gate as parse_gate,
)
from .training.library_options import (
    OURS as OURS,
    OWNED as OWNED,
    class_fields as class_fields,
    library_source as library_source,
    lora_argument_names as lora_argument_names,
    refused_argument as refused_argument,
    refused_lora_value as refused_lora_value,
    refused_value as refused_value,
    trainer_argument_names as trainer_argument_names,
)
from .training.method import (
    TrainingMethod as TrainingMethod,
    evaluation_layout as evaluation_layout,
)
from .training.options import (
    REPORTERS as REPORTERS,
    ROLLOUTS as ROLLOUTS,
    WEIGHTS_ONLY as WEIGHTS_ONLY,
    generations_of as generations_of,
    number_of as number_of,
    option_of as option_of,
    processes_of as processes_of,
    refused_in_training as refused_in_training,
    refused_spreading as refused_spreading,
    reporters as reporters,
    spreads_weights as spreads_weights,
    weights_only as weights_only,
)
from .training.ppo import (
    PpoOptions as PpoOptions,
    check_training as check_training,
    ppo_options as ppo_options,
)
from .training.spec import (
    CheckpointLoad as CheckpointLoad,
    Evaluation as Evaluation,
    Generation as Generation,
    Harness as Harness,
    Lora as Lora,
    RewardFunction as RewardFunction,
    RewardModel as RewardModel,
    Training as Training,
)
