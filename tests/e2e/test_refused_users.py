"""A database that refuses its user is one sentence of the command that needs it."""

from __future__ import annotations

import subprocess
import sys

import pytest
from sqlalchemy.engine import make_url

from mloc_dagster.home import postgres_url
from mloc_dagster.services import check_postgres
from mloc_dagster.settings import settings
from tests.e2e.conftest import ROOT

pytestmark = pytest.mark.e2e


@pytest.mark.usefixtures("instance")
def test_a_worker_that_postgres_refuses_ends_with_one_sentence(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = make_url(postgres_url())
    check_postgres(url.render_as_string(hide_password=False))
    refused = url.set(username="nobody-here", password="not-the-one")
    monkeypatch.setenv("MLOC_POSTGRES_URL", refused.render_as_string(hide_password=False))
    monkeypatch.setenv("MLOC_REDIS_URL", redis_url)
    settings.cache_clear()
    done = subprocess.run(
        [sys.executable, "-m", "mloc_dagster.cli", "worker"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    said = [line for line in done.stderr.splitlines() if line.startswith("mloc: ")]
    assert done.returncode == 2, done.stderr
    assert len(said) == 1
    assert "PostgreSQL refuses its URL" in said[0]
    assert 'role "nobody-here" does not exist' in said[0]
    assert "Traceback" not in done.stderr
    assert "not-the-one" not in done.stderr
