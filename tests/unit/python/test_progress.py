from __future__ import annotations

from datetime import UTC, datetime

from mloc_dagster.events import Payload, ShardPlace, TaskEvent, TaskEventType
from mloc_dagster.python.progress import NotebookView, Progress, Watch


def event(kind: TaskEventType, **payload: object) -> TaskEvent:
    return TaskEvent(
        type=kind,
        task_id="t",
        run_id="r",
        node="<draft>",
        ts=datetime.now(UTC),
        shard=None if kind is TaskEventType.TASK_STARTED else ShardPlace(index=0, total=1),
        payload=Payload.model_validate(payload),
    )


def test_a_function_is_told_how_far_a_task_is() -> None:
    told: list[Progress] = []
    watch = Watch(told.append)
    watch.hear(event(TaskEventType.TASK_STARTED, rows=4))
    watch.hear(event(TaskEventType.TASK_PROGRESS, rows=3, errors=1))
    assert [(each.name, each.done, each.total, each.errors) for each in told] == [
        ("<draft>", 0, 4, 0),
        ("<draft>", 3, 4, 1),
    ]
    assert not told[-1].ended


def test_a_cell_shows_the_last_state_and_no_html_of_others() -> None:
    shown: list[str] = []
    view = NotebookView(shown.append)
    view.close()
    assert shown == []  # nothing has begun
    watch = Watch(False)
    watch._monitor.view = view
    watch.hear(event(TaskEventType.TASK_STARTED, rows=4))
    watch.hear(event(TaskEventType.TASK_PROGRESS, rows=4))
    watch.say("stopping & waiting")
    watch.close()
    assert 'value="4" max="4"' in shown[-1]
    assert "&lt;draft&gt;" in shown[-1]
    assert "stopping &amp; waiting" in shown[-1]
