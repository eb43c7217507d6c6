"""Dagster's UI with its daemon, as `dagster dev` and `dg dev` start them."""

from __future__ import annotations

import os
import signal
import subprocess
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.e2e.stack import until
from tests.ports import free_port


@contextmanager
def serving(
    command: Sequence[Path | str], folder: Path, environment: Mapping[str, str], log: Path
) -> Iterator[str]:
    """Runs a command that serves until it is interrupted; yields its address.

    Args:
        command: Its last argument, a port, is left out.
        folder: Where it runs.
        environment: All of it.
        log: Takes what it prints.
    """
    port = free_port()
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, str(port)],
            cwd=folder,
            env=dict(environment),
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    url = f"http://127.0.0.1:{port}"
    try:
        until(lambda: process.poll() is not None or _answers(url), f"{url} answers")
        assert process.poll() is None, log.read_text()
        yield url
    finally:
        os.killpg(process.pid, signal.SIGINT)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/server_info", timeout=5) as reply:
            return reply.status == 200
    except OSError:
        return False
