"""Fixtures that the whole suite shares."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from mloc_dagster.settings import settings


@pytest.fixture(autouse=True)
def own_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Gives each test a store and a home of its own, and settings read anew."""
    monkeypatch.setenv("MLOC_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MLOC_RESULTS_URL", str(tmp_path / "results"))
    settings.cache_clear()
    yield
    settings.cache_clear()
