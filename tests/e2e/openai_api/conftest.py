"""A stack for tests that speak OpenAI's API, one for each module of them."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from tests.e2e.stack import Stack


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    """One worker, whose rows are written at once."""
    with (
        tempfile.TemporaryDirectory(prefix="mloc-") as folder,
        Stack(
            Path(folder) / "home",
            workers=1,
            run_workers=1,
            api=True,
            environment={"MLOC_FLUSH_ROWS": "1"},
        ) as stack,
    ):
        yield stack


@pytest.fixture
def client(stack: Stack) -> Iterator[openai.OpenAI]:
    """The package's own client."""
    url = f"http://127.0.0.1:{stack.api_port}/v1"
    with openai.OpenAI(base_url=url, api_key="any", max_retries=0, timeout=600) as client:
        yield client
