from .adapters import adapter_folder as adapter_folder, archive_folder as archive_folder
from .agent.executor import AgentExecutor as AgentExecutor
from .base import (
    AnswersCalls as AnswersCalls,
    Caller as Caller,
    InputRow as InputRow,
    ModelKey as ModelKey,
    OutputRow as OutputRow,
    RowExecutor as RowExecutor,
    ShardContext as ShardContext,
    ShardInput as ShardInput,
    TaskExecutor as TaskExecutor,
    cancel_requested as cancel_requested,
    cancellable as cancellable,
    failed_row as failed_row,
    model_key_text as model_key_text,
)
from .batch_task import (
    MemberResults as MemberResults,
    miss_of as miss_of,
    node_of as node_of,
    start_batch as start_batch,
    start_of as start_of,
)
from .echo import EchoSpec as EchoSpec
from .engines.choice import loader_of as loader_of
from .engines.protocol import (
    Answer as Answer,
    Completion as Completion,
    Engine as Engine,
    EngineLoader as EngineLoader,
    EngineRequest as EngineRequest,
    Rendered as Rendered,
    Replies as Replies,
)
from .engines.transformers.pooling import PoolingEngine as PoolingEngine
from .engines.vllm.engine import VllmEngine as VllmEngine, load_engine as load_engine
from .engines.vllm.engine_type import argument_names as argument_names
from .engines.vllm.pooling import VllmPoolingEngine as VllmPoolingEngine
from .engines.vllm.process import vllm_build as vllm_build
from .estimate import (
    Estimate as Estimate,
    Figure as Figure,
    TrainingEstimate as TrainingEstimate,
    Unknown as Unknown,
    add_up as add_up,
    estimate_rows as estimate_rows,
    estimate_training as estimate_training,
    unknown_estimate as unknown_estimate,
)
from .images import ImageLoader as ImageLoader
from .inference import InferenceExecutor as InferenceExecutor, answer_rows as answer_rows
from .input_planning import (
    TokenCounter as TokenCounter,
    kind_of as kind_of,
    plan_input as plan_input,
)
from .model_cache import ModelCache as ModelCache
from .model_source import model_place as model_place
from .prompts import RowOptions as RowOptions, last_user_text as last_user_text
from .retrieval.named_search import search_index as search_index
from .retrieval.pinned import read_pinned as read_pinned
from .retrieval.query_model import query_fields as query_fields
from .reuse_identity import file_contents as file_contents
from .row_gate import RowGate as RowGate
from .shard_run import (
    ShardLog as ShardLog,
    ShardReport as ShardReport,
    run_shard as run_shard,
    shard_log_name as shard_log_name,
    worker_name as worker_name,
)
from .task_start import (
    OpenTask as OpenTask,
    check_tasks as check_tasks,
    open_task as open_task,
    plan_training as plan_training,
    request_block as request_block,
    start_task as start_task,
    task_executor as task_executor,
    task_id_for as task_id_for,
    task_record as task_record,
)
from .training.base import Hooks as Hooks, TrainingRun as TrainingRun
from .training.checkpoints import published_checkpoints as published_checkpoints
from .training.evaluation import evaluate as evaluate
from .training.examples import rendered_rows as rendered_rows
from .training.messages import (
    Finished as Finished,
    Message as Message,
    Progress as Progress,
    TrainingJob as TrainingJob,
)
from .training.ppo.prompts import encode_prompts as encode_prompts
from .training.ppo.rollouts import Sampler as Sampler
from .training.ppo.trainer import PpoTrainer as PpoTrainer
from .training.session import train as train
from .training.task import (
    Attempt as Attempt,
    conclude as conclude,
    make_room as make_room,
    process_count as process_count,
    run_training as run_training,
    weights_of as weights_of,
)
from .training.weights import locate_weights as locate_weights
