"""vLLM's own OpenAI server with a model that ships, as a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from mloc_dagster.models import builtin_model_path
from tests.ports import free_port

STARTS_WITHIN_S = 600.0


@contextmanager
def vllm_server(log: Path, *arguments: str, model: str = "tiny-chat") -> Iterator[str]:
    """A running server; yields its address.

    Args:
        log: Takes what it writes.
        arguments: More of its arguments.
        model: Which one.
    """
    port = free_port()
    command = [
        *(sys.executable, "-m", "vllm.entrypoints.openai.api_server"),
        *("--model", str(builtin_model_path(model)), "--served-model-name", model),
        *("--host", "127.0.0.1", "--port", str(port), "--max-num-seqs", "64", "--enforce-eager"),
        # With a prompt read in pieces, a seeded request breaks vLLM 0.32 on a CPU.
        *("--no-enable-chunked-prefill", "--max-num-batched-tokens", "4096"),
        *arguments,
    ]
    settings = {
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "TORCHDYNAMO_DISABLE": "1",  # else log probabilities are compiled, with a compiler
    }
    with log.open("wb") as output:
        server = subprocess.Popen(
            command,
            env={**os.environ, **settings},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            url = f"http://127.0.0.1:{port}"
            _wait_until_up(server, url, log)
            yield f"{url}/v1"
        finally:
            os.killpg(server.pid, signal.SIGTERM)
            try:
                server.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(server.pid, signal.SIGKILL)
                server.wait()


def _wait_until_up(server: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + STARTS_WITHIN_S
    while time.monotonic() < deadline:
        assert server.poll() is None, log.read_text()[-3000:]
        try:
            if httpx.get(f"{url}/health", timeout=5).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.5)
    raise AssertionError(f"vLLM's server is not up: {log.read_text()[-3000:]}")
