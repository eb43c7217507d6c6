"""Tasks whose rows an endpoint answers, by command: killed, resumed, and telling no key."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("openai")
pytest.importorskip("aiolimiter")

from tests.endpoint_server import FakeEndpoint, endpoint

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

KEY = "planted-Q7rT2mZ9xK4w"
PATIENCE_S = 300
ROWS = 60

TEMPLATE = """\
apiVersion: mloc/v1
kind: InferenceTask
metadata: {name: asked}
spec:
  taskType: inference
  model:
    source:
      type: openai
      identifier: parrot
      base_url: "${PARROT_URL}"
      api_key: "${ENV:PARROT_KEY}"
    openai: {max_concurrency: 4, max_retries: 0}
  data: {type: dataset, url: ./rows.txt}
  parallel: {max_shards: 1}
  inference: {temperature: 0.5, max_tokens: 8, error_budget: 0.5}
"""
WITHOUT_TORCH = """\
import sys
from mloc_dagster.cli import entry
code = entry.run(sys.argv[1:])
heavy = {"torch", "transformers", "vllm"} & sys.modules.keys()
assert not heavy, heavy
sys.exit(code)
"""


@pytest.fixture
def fake() -> Iterator[FakeEndpoint]:
    with endpoint() as found:
        found.key = KEY
        yield found


class Place:
    """A folder to work in, with a home of its own."""

    def __init__(self, folder: Path, home: Path, url: str) -> None:
        self.folder = folder
        self.home = home
        (folder / "asked.yaml").write_text(TEMPLATE)
        (folder / "rows.txt").write_text("".join(f"row {n}\n" for n in range(ROWS)))
        self.results = folder / "results"
        self._environment = {
            **os.environ,
            "MLOC_HOME": str(home),
            "MLOC_RESULTS_URL": str(self.results),
            "MLOC_FLUSH_ROWS": "1",
            "PARROT_URL": url,
            "PARROT_KEY": KEY,
        }

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", WITHOUT_TORCH, *arguments],
            cwd=self.folder,
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: str) -> tuple[int, str]:
        process = self.start(*arguments)
        out, err = process.communicate(timeout=PATIENCE_S)
        return process.returncode, out + err

    @property
    def task_id(self) -> str:
        (found,) = self.results.glob("*/task.json")
        return found.parent.name

    def told(self) -> Iterator[Path]:
        """Yields every file below the home and the results that has the key in it."""
        for root in (self.home, self.results):
            for path in root.rglob("*"):
                if path.is_file() and KEY.encode() in path.read_bytes():
                    yield path


@pytest.fixture
def place(tmp_path: Path, fake: FakeEndpoint) -> Iterator[Place]:
    with tempfile.TemporaryDirectory(prefix="mloc-") as home:
        yield Place(tmp_path, Path(home), fake.url)


def test_a_killed_task_goes_on_and_asks_only_for_what_is_missing(
    place: Place, fake: FakeEndpoint
) -> None:
    fake.slow_s = 0.1
    process = place.start("run", "asked.yaml", "-q")
    deadline = time.monotonic() + PATIENCE_S
    while len(fake.bodies) < ROWS // 2:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    fake.slow_s = 0.0
    code, said = place.run("run", "--resume", place.task_id, "-q")
    assert code == 0, said
    items = json.loads((place.results / place.task_id / "responses.json").read_text())["result"]
    outputs = [each["output"] for each in items["items"]]
    assert outputs == [f"row {n}" for n in range(ROWS)]
    asked = [body["messages"][-1]["content"] for body in fake.bodies]
    assert set(asked) == set(outputs)
    # What was in flight is asked for again, and rows that the killed process had not written yet.
    assert len(asked) <= ROWS + 2 * 4
    assert list(place.told()) == []


def test_no_file_and_no_output_tells_the_key(place: Place, fake: FakeEndpoint) -> None:
    fake.key = "another"  # whose refusal quotes what it was given
    code, said = place.run("run", "asked.yaml")
    assert code == 1
    assert "answered 401" in said
    assert KEY not in said
    assert list(place.told()) == []


def test_a_key_that_stands_in_the_template_is_put_aside(place: Place, fake: FakeEndpoint) -> None:
    template = place.folder / "asked.yaml"
    template.write_text(TEMPLATE.replace("${ENV:PARROT_KEY}", KEY))
    code, said = place.run("run", "asked.yaml")
    assert code == 0, said
    assert KEY not in said
    shown = {path.relative_to(place.results).parts[0] for path in place.told()}
    assert shown <= {".secrets"}
