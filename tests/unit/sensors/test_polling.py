"""A tick looks several times where that keeps nobody waiting."""

from __future__ import annotations

import dagster as dg
import pytest

from mloc_dagster.sensors import polling as module
from mloc_dagster.sensors.polling import polls


@pytest.mark.parametrize(("threads", "count"), [(True, 5), (False, 1)])
def test_looks_depend_on_whether_others_would_wait(
    threads: bool, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "EVERY_S", 0.0)
    sensors = {"sensors": {"use_threads": threads, "num_workers": 2}}
    with dg.instance_for_test(overrides=sensors) as instance:
        assert list(polls(instance)) == list(range(count))
