from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mloc_dagster.api.metrics import access_log_on_stdout
from mloc_dagster.settings import settings
from tests.api_server import ECHO, Served, serving

_LINE = re.compile(
    r"(?P<when>\d{4}-\d\d-\d\dT[\d:.]+\+00:00) (?P<client>\S+) token=(?P<token>\S+) "
    r"(?P<method>[A-Z]+) (?P<path>\S+) (?P<status>\d{3}) [\d.]+s task=(?P<task>\S+)"
)


@contextmanager
def _logged() -> Iterator[tuple[Served, list[dict[str, str]]]]:
    """The API, and its access log, which is complete when the block has ended."""
    lines: list[dict[str, str]] = []

    class Lines(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found = _LINE.fullmatch(record.getMessage())
            assert found, record.getMessage()
            lines.append(found.groupdict())

    log, handler = logging.getLogger("mloc_dagster.api.metrics"), Lines()
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        with serving() as api:
            yield api, lines
    finally:
        log.removeHandler(handler)
        log.setLevel(logging.NOTSET)


def test_each_request_is_a_line_with_its_task_and_result() -> None:
    with _logged() as (api, lines):
        task = api.submit()
        several = "---\n".join(ECHO.replace("hello", f"n{each}") for each in range(3))
        first = api.submit(several)
        api.client.get(f"/api/v1/tasks/{task}")
        api.client.get("/api/v1/tasks/nope/logs?x=secret-query")
        api.client.post("/api/v1/tasks", content="- no")
    shown = [(each["method"], each["path"], each["status"], each["task"]) for each in lines]
    assert shown == [
        ("POST", "/api/v1/tasks", "202", task),
        ("POST", "/api/v1/tasks", "202", f"{first}+2"),
        ("GET", f"/api/v1/tasks/{task}", "200", task),
        ("GET", "/api/v1/tasks/nope/logs", "404", "nope"),
        ("POST", "/api/v1/tasks", "422", "-"),
    ]
    assert {each["token"] for each in lines} == {"-"}


def test_a_token_is_named_and_never_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "tokens"
    file.write_text("# ours\nhush-1 ci\nhush-2\n")
    monkeypatch.setenv("MLOC_API_TOKEN_FILE", str(file))
    monkeypatch.setenv("MLOC_API_TOKEN", "hush-0")
    settings.cache_clear()
    with _logged() as (api, lines):
        for token in ("hush-0", "hush-1", "hush-2", "hush-3"):
            api.client.get("/workers", headers={"Authorization": f"Bearer {token}"})
    assert [(each["token"], each["status"] == "401") for each in lines] == [
        ("MLOC_API_TOKEN", False),
        ("ci", False),
        ("line-3", False),
        ("-", True),
    ]


def test_probes_that_find_all_well_and_forged_lines_are_left_out() -> None:
    with _logged() as (api, lines):
        api.client.get("/healthz")
        api.client.get("/healthz", headers={"Host": "evil.example"})
        api.client.get("/nope%0A2026-01-01T00:00:00 token=root")
    assert [each["status"] for each in lines] == ["421", "404"]
    assert len(lines[1]["path"].splitlines()) == 1


def test_the_command_writes_the_lines_to_its_output(capsys: pytest.CaptureFixture[str]) -> None:
    with access_log_on_stdout(), serving() as api:
        task = api.submit()
    out = capsys.readouterr().out
    assert _LINE.fullmatch(out.strip())
    assert out.strip().endswith(f"task={task}")
