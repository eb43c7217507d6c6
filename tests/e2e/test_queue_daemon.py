"""The run queue is looked at when there is news of it, and by Dagster's own rules."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from itertools import islice
from unittest.mock import MagicMock

import dagster as dg
import pytest

from mloc_dagster.errors import TransientError
from mloc_dagster.home import postgres_url
from mloc_dagster.sensors import Deadlines, News, QueueDaemon
from mloc_dagster.services import QUEUE_CHANNEL, Notifications
from tests.e2e.queued_runs import echo_template, queued

pytestmark = pytest.mark.e2e

_LONG_S = 60.0
NEVER = threading.Event()


@pytest.fixture
def news(instance: dg.DagsterInstance) -> Iterator[News]:
    listening = News(lambda: Notifications(postgres_url(), QUEUE_CHANNEL))
    listening.wait(0.0, NEVER)  # connects
    yield listening
    listening.close()


def test_a_run_that_is_queued_and_one_that_ends_are_news(
    instance: dg.DagsterInstance, news: News
) -> None:
    run = queued(instance, echo_template("heard"))
    assert news.wait(_LONG_S, NEVER)
    found = instance.get_run_by_id(run.run_id)
    assert found is not None
    assert found.status is dg.DagsterRunStatus.QUEUED  # whoever hears of it finds it
    assert not news.wait(0.0, NEVER)
    instance.report_run_canceled(run)
    assert news.wait(_LONG_S, NEVER)


def test_a_database_that_is_away_is_no_news_and_connected_to_again(news: News) -> None:
    connections: list[Notifications] = []

    def connect() -> Notifications:
        if not connections:
            connections.append(Notifications(postgres_url(), QUEUE_CHANNEL))
            raise TransientError("away")
        return connections[0]

    patient = News(connect)
    assert not patient.wait(0.01, NEVER)
    assert not patient.wait(0.01, NEVER)
    patient.close()


def test_the_queue_is_served_where_its_order_cannot_be_kept(
    instance: dg.DagsterInstance, news: News, monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon = QueueDaemon(news)
    looks: list[str] = []

    def broken(*_: object) -> None:
        raise OSError("no order today")

    def look(*_: object, **__: object) -> Iterator[None]:
        looks.append("looked")
        yield

    monkeypatch.setattr(Deadlines, "put_in_order", broken)
    monkeypatch.setattr(daemon, "run_iteration", look)
    loop = daemon.core_loop(MagicMock(instance=instance), threading.Event())
    said = list(islice(loop, 4))
    loop.close()
    assert looks == ["looked"]
    assert "no order today" in str(said)
