from .bus import MemoryEventLog as MemoryEventLog, listening as listening, publish as publish
from .last_progress import (
    LastProgress as LastProgress,
    last_counts as last_counts,
    last_training_progress as last_training_progress,
)
from .log import (
    BEGINNING as BEGINNING,
    Channel as Channel,
    EventLog as EventLog,
    LoggedEvent as LoggedEvent,
)
from .model import (
    Event as Event,
    Payload as Payload,
    ShardPlace as ShardPlace,
    SloMiss as SloMiss,
    TaskEvent as TaskEvent,
    TaskEventType as TaskEventType,
    TrainingFigures as TrainingFigures,
    WorkerEvent as WorkerEvent,
    WorkerEventType as WorkerEventType,
    WorkerPayload as WorkerPayload,
    WorkerState as WorkerState,
)
from .redis import RedisPublisher as RedisPublisher, publishing_to_redis as publishing_to_redis
from .stream import (
    STREAM_AWAY as STREAM_AWAY,
    StreamClient as StreamClient,
    check_redis as check_redis,
    open_redis as open_redis,
    read_events as read_events,
    send as send,
)
