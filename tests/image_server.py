"""A real HTTP server on this machine that answers as the web does: well, late, wrongly, never."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from typing import Any

from tests.tiny_vision import square

Page = Callable[[BaseHTTPRequestHandler], None]


def encoded(picture: Any, form: str = "PNG", **options: Any) -> bytes:
    """Returns a picture as a file's bytes."""
    file = BytesIO()
    picture.save(file, form, **options)
    return file.getvalue()


def coloured(colour: str, side: int = 32) -> bytes:
    """Returns a plain square as the bytes of a PNG file."""
    return encoded(square(colour, side))


def send(body: bytes, status: int = 200, **headers: str) -> Page:
    """Returns a page with this body; `Content_Length=""` leaves that header out."""

    def page(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, value in ({"Content_Length": str(len(body))} | headers).items():
            if value:
                handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(body)

    return page


@dataclass
class ImageServer:
    """Serves pages by their path.

    Attributes:
        url: Of its root, without the last slash.
        pages: What it answers; others are 404.
        asked: Paths, in the order in which they were asked for.
        closing: Set when it ends, for pages that keep their reader waiting.
    """

    url: str
    pages: dict[str, Page] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    closing: threading.Event = field(default_factory=threading.Event)

    def add(self, path: str, page: Page) -> str:
        """Returns the URL under which it answers with a page from now on."""
        self.pages[path] = page
        return self.url + path


@contextmanager
def image_server() -> Iterator[ImageServer]:
    """Starts one on a free port, and ends it."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            server.asked.append(self.path)
            try:
                server.pages.get(self.path, send(b"", 404))(self)
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True  # the reader had enough

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.do_GET()

        def log_message(self, format: str, *arguments: object) -> None:
            """Keeps the tests' output clean."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listener:
        listener.daemon_threads = True
        server = ImageServer(f"http://127.0.0.1:{listener.server_port}")
        thread = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield server
        finally:
            server.closing.set()
            listener.shutdown()
            thread.join()
