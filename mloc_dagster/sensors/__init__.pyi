from .daemon import Deadlines as Deadlines, News as News, QueueDaemon as QueueDaemon
from .events import (
    LogCursor as LogCursor,
    facts_since as facts_since,
    publish_events_sensor as publish_events_sensor,
    publish_since as publish_since,
)
from .slo import (
    PRIORITY_TAG as PRIORITY_TAG,
    SLACK_TAG as SLACK_TAG,
    JobEstimates as JobEstimates,
    publish_missed as publish_missed,
    reorder_queue as reorder_queue,
)
from .task_facts import tasks_of as tasks_of
