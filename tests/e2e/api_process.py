"""The API as `mloc api` serves it, in a thread of this process."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from fastapi import FastAPI

from mloc_dagster.api import TimeoutProtocol


@contextmanager
def served(app: FastAPI) -> Iterator[str]:
    """Serves an app on a free port; yields its address."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(128)  # who comes before the server is ready waits
    config = uvicorn.Config(
        app, http=TimeoutProtocol, ws="none", lifespan="on", log_level="error", access_log=False
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(timeout=30)
        listener.close()
