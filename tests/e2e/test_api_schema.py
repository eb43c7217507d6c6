"""Requests made up from the OpenAPI document, valid and not: none may find a defect."""

from __future__ import annotations

import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from mloc_dagster.api import create_app
from mloc_dagster.ledger import Ledger
from mloc_dagster.settings import settings
from tests.e2e.api_process import served

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

# YAML is more than its schema says: text is refused that the document allows.
_EXCLUDED = "positive_data_acceptance"

# No worker is there to answer a call, and that is said by a 503 of its own.
_CONFIG = """\
[[operations]]
include-path-regex = "^/v1/(chat/completions|completions|embeddings)$"
checks.not_a_server_error.expected-statuses = ["2xx", "3xx", "4xx", "503"]
"""


def test_no_made_up_request_finds_a_defect(
    session_home: Path, redis_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MLOC_HOME", str(session_home))
    monkeypatch.setenv("MLOC_REDIS_URL", redis_url)
    monkeypatch.setenv("MLOC_API_TOKEN", "for-schemathesis")
    settings.cache_clear()
    (tmp_path / "schemathesis.toml").write_text(_CONFIG)
    with closing(Ledger.open()) as ledger, served(create_app(ledger)) as url:
        found = subprocess.run(
            [
                sys.executable, "-m", "schemathesis.cli", "run", f"{url}/openapi.json",
                "--header", "Authorization: Bearer for-schemathesis",
                "--exclude-checks", _EXCLUDED,
                "--max-examples", "15", "--seed", "1", "--no-color",
                "--suppress-health-check", "all", "--request-timeout", "10",
            ],
            capture_output=True, text=True, timeout=900, check=False, cwd=tmp_path,
        )  # fmt: skip
    assert found.returncode == 0, found.stdout[-8_000:] + found.stderr[-2_000:]
