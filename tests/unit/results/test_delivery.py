"""Delivery against a real HTTP server that fails on demand and knows keys again."""

from __future__ import annotations

import email.parser
import email.policy
import json
import logging
import threading
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from mloc_dagster.errors import DeliveryError, InputError
from mloc_dagster.results.delivery import deliver
from mloc_dagster.results.store import Folder, open_store
from mloc_dagster.schema import HttpDestination, LocalDestination


@dataclass
class Receiver:
    """What the server got, and what it shall answer first."""

    url: str = ""
    answers: list[tuple[int, dict[str, str], bytes] | None] = field(default_factory=list)
    requests: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    kept: dict[str, tuple[str, bytes]] = field(default_factory=dict)
    """By idempotency key: the path and the body that came first."""

    def uploads(self) -> dict[str, bytes]:
        return dict(_form(body) for path, body in self.kept.values() if path.endswith("/files"))


def _form(body: bytes) -> tuple[str, bytes]:
    boundary = body.split(b"\r\n", 1)[0][2:].decode()
    head = f'Content-Type: multipart/form-data; boundary="{boundary}"\r\n\r\n'.encode()
    parser = email.parser.BytesParser(policy=email.policy.HTTP)
    (part,) = parser.parsebytes(head + body).iter_parts()
    return part.get_filename(), part.get_payload(decode=True)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    state = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self._read_body()
            state.requests.append((self.command, self.path, dict(self.headers)))
            if state.answers:
                answer = state.answers.pop(0)
                if answer is None:
                    self.close_connection = True
                    return
                self._answer(*answer)
                return
            state.kept.setdefault(self.headers["Idempotency-Key"], (self.path, body))
            self._answer(201, {}, b"{}")

        do_PUT = do_POST  # noqa: N815

        def _read_body(self) -> bytes:
            if "Content-Length" in self.headers:
                return self.rfile.read(int(self.headers["Content-Length"]))
            blocks = []
            while size := int(self.rfile.readline(), 16):
                blocks.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(blocks)

        def _answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{server.server_port}/results"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield state
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(params=["memory", "local"])
def folder(request: pytest.FixtureRequest, tmp_path: object) -> Folder:
    url = f"memory://{uuid.uuid4().hex}" if request.param == "memory" else str(tmp_path)
    folder = open_store(url).task("task-1")
    folder.write_bytes("task.json", b"{}")
    folder.write_bytes("responses.json", b'{"task_id": "task-1"}')
    folder.write_bytes("checkpoints/a b/model.bin", bytes(range(256)) * 1000)
    folder.write_bytes("checkpoints/config.json", b"{}")
    return folder


class Pauses(list[float]):
    def __call__(self, seconds: float) -> None:
        self.append(seconds)


@pytest.fixture
def pauses() -> Pauses:
    return Pauses()


def _destination(receiver: Receiver, **fields: object) -> HttpDestination:
    return HttpDestination.model_validate({"type": "http", "url": receiver.url, **fields})


def test_the_result_and_every_artifact_arrive(folder: Folder, receiver: Receiver) -> None:
    report = deliver(folder, "task-1", _destination(receiver), ["responses.json", "checkpoints/"])

    paths = [path for path, _ in receiver.kept.values()]
    assert paths == ["/results"] + ["/results/task-1/files"] * 3
    assert json.loads(next(iter(receiver.kept.values()))[1]) == {"task_id": "task-1"}
    uploads = receiver.uploads()
    assert sorted(uploads) == [
        "checkpoints/a b/model.bin",
        "checkpoints/config.json",
        "responses.json",
    ]
    assert uploads["checkpoints/a b/model.bin"] == bytes(range(256)) * 1000
    assert [item.name for item in report.items] == [
        "responses.json",
        "responses.json",
        "checkpoints/a b/model.bin",
        "checkpoints/config.json",
    ]
    assert [item.idempotency_key for item in report.items] == list(receiver.kept)
    method, _, headers = receiver.requests[0]
    assert (method, headers["Content-Type"]) == ("POST", "application/json")
    assert "Transfer-Encoding" not in headers


def test_delivered_twice_is_there_once(folder: Folder, receiver: Receiver) -> None:
    for _ in range(2):
        deliver(folder, "task-1", _destination(receiver), ["checkpoints"])
    assert len(receiver.requests) == 6
    assert len(receiver.kept) == 3

    folder.write_bytes("responses.json", b'{"other": 1}')
    deliver(folder, "task-1", _destination(receiver), [])
    assert len(receiver.kept) == 4


def test_method_headers_and_url_come_from_template_and_environment(
    folder: Folder, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_TOKEN", "s3cret")
    monkeypatch.setenv("MY_URL", receiver.url + "?key=1")
    destination = _destination(
        receiver, url="${MY_URL}", method="PUT", headers={"Authorization": "Bearer ${MY_TOKEN}"}
    )
    report = deliver(folder, "task-1", destination, ["checkpoints/config.json"])

    assert [(method, path) for method, path, _ in receiver.requests] == [
        ("PUT", "/results?key=1"),
        ("POST", "/results/task-1/files?key=1"),
    ]
    assert {headers["Authorization"] for *_, headers in receiver.requests} == {"Bearer s3cret"}
    assert "s3cret" not in report.model_dump_json()
    assert report.items[0].target == "${MY_URL}"


@pytest.mark.parametrize("name", ["Content-Type", "content-type"])
def test_a_content_type_is_the_results_and_leaves_the_forms_theirs(
    folder: Folder, receiver: Receiver, name: str
) -> None:
    destination = _destination(receiver, headers={name: "application/vnd.mine+json"})
    deliver(folder, "task-1", destination, ["checkpoints/config.json"])

    result, upload = (headers["Content-Type"] for *_, headers in receiver.requests)
    assert result == "application/vnd.mine+json"
    assert upload.startswith("multipart/form-data; boundary=")
    assert list(receiver.uploads()) == ["checkpoints/config.json"]


def test_headers_that_describe_each_body_are_refused(receiver: Receiver) -> None:
    with pytest.raises(ValueError, match="'Content-Length' is set by mloc for each request"):
        _destination(receiver, headers={"Content-Length": "7"})


@pytest.mark.parametrize("status", [408, 425, 429, 500, 503, None])
def test_what_may_pass_is_tried_again_with_the_same_key(
    folder: Folder, receiver: Receiver, pauses: Pauses, status: int | None
) -> None:
    failure = None if status is None else (status, {}, b"busy")
    receiver.answers = [failure, failure]
    report = deliver(folder, "task-1", _destination(receiver), [], pause=pauses)

    assert report.items[0].attempts == 3
    assert len(receiver.requests) == 3
    assert len({headers["Idempotency-Key"] for *_, headers in receiver.requests}) == 1
    assert 0 < pauses[0] <= 0.5
    assert 0.5 <= pauses[1] <= 1


@pytest.mark.parametrize(("asked", "waited"), [("7", 7.0), ("3600", 60.0)])
def test_the_receiver_may_ask_for_a_pause(
    folder: Folder, receiver: Receiver, pauses: Pauses, asked: str, waited: float
) -> None:
    receiver.answers = [(503, {"Retry-After": asked}, b"")]
    deliver(folder, "task-1", _destination(receiver), [], pause=pauses)
    assert pauses == [waited]


def test_tries_are_bounded(folder: Folder, receiver: Receiver, pauses: Pauses) -> None:
    receiver.answers = [(500, {}, b"out of order")] * 9
    with pytest.raises(DeliveryError, match=r"responses\.json in 3 attempts: HTTP 500: out of"):
        deliver(folder, "task-1", _destination(receiver, max_attempts=3), [], pause=pauses)
    assert len(receiver.requests) == 3
    assert len(pauses) == 2


def test_a_refusal_ends_it_at_once_and_tells_no_secret(
    folder: Folder,
    receiver: Receiver,
    pauses: Pauses,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("MY_TOKEN", "s3cret")
    receiver.answers = [(401, {"X-Hidden": "hidden"}, b"no entry " * 100)]
    destination = _destination(receiver, headers={"X-Token": "${MY_TOKEN}"})
    with caplog.at_level(logging.INFO), pytest.raises(DeliveryError) as caught:
        deliver(folder, "task-1", destination, [], pause=pauses)

    text = str(caught.value)
    assert "HTTP 401: no entry" in text
    assert len(text) < 350
    assert "s3cret" not in text + caplog.text
    assert "hidden" not in text
    assert not pauses


@pytest.mark.parametrize("value", ["a\nb", "a ", "ä"])
def test_a_header_that_http_cannot_carry_is_refused_unquoted(
    folder: Folder, receiver: Receiver, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("MY_TOKEN", f"s3cret{value}")
    destination = _destination(receiver, headers={"X-Token": "${MY_TOKEN}"})
    with pytest.raises(DeliveryError, match="'X-Token'") as caught:
        deliver(folder, "task-1", destination, [])
    assert "s3cret" not in str(caught.value)
    assert receiver.requests == []


def test_an_unset_variable_is_named(folder: Folder, receiver: Receiver) -> None:
    destination = _destination(receiver, headers={"X": "${MLOC_TEST_UNSET}"})
    with pytest.raises(InputError, match="MLOC_TEST_UNSET"):
        deliver(folder, "task-1", destination, [])


def test_redirects_are_not_followed(folder: Folder, receiver: Receiver) -> None:
    receiver.answers = [(302, {"Location": "http://127.0.0.1:1/elsewhere"}, b"")]
    with pytest.raises(DeliveryError, match="HTTP 302, a redirect"):
        deliver(folder, "task-1", _destination(receiver), [])


def test_an_unreachable_receiver_is_a_delivery_error(folder: Folder, pauses: Pauses) -> None:
    destination = HttpDestination.model_validate(
        {"type": "http", "url": "http://me:s3cret@127.0.0.1:1/x", "max_attempts": 2}
    )
    with pytest.raises(DeliveryError, match=r"http://127\.0\.0\.1:1/x did not take"):
        deliver(folder, "task-1", destination, [], pause=pauses)
    assert len(pauses) == 1


def test_a_missing_artifact_stops_the_delivery_before_it_begins(
    folder: Folder, receiver: Receiver
) -> None:
    with pytest.raises(DeliveryError, match=r"cannot deliver 'archives/model\.tar'"):
        deliver(folder, "task-1", _destination(receiver), ["archives/model.tar"])
    assert receiver.requests == []


def test_a_local_path_gets_a_copy_and_the_latest_run_wins(folder: Folder) -> None:
    copies = folder.store.folder("latest/demo")
    copies.write_bytes("responses.json", b"of an earlier run")
    destination = LocalDestination(path="./latest/demo")
    report = deliver(folder, "task-1", destination, ["responses.json", "checkpoints"])

    assert copies.list(recursive=True) == [
        "checkpoints/a b/model.bin",
        "checkpoints/config.json",
        "responses.json",
    ]
    assert copies.read_bytes("responses.json") == folder.read_bytes("responses.json")
    assert report.items[0].target == f"{copies.url}/responses.json"


@pytest.mark.parametrize("path", [None, "/data/outputs"])
def test_no_path_and_absolute_paths_copy_nothing(folder: Folder, path: str | None) -> None:
    before = folder.store.folder("task-1").list(recursive=True)
    assert deliver(folder, "task-1", LocalDestination(path=path), ["responses.json"]).items == ()
    assert folder.list(recursive=True) == before


def test_a_copy_never_lands_in_a_task(folder: Folder) -> None:
    with pytest.raises(InputError, match="is the folder of task 'task-1'"):
        deliver(folder, "task-1", LocalDestination(path="task-1/x"), ["responses.json"])
