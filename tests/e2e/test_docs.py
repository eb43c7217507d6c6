"""README and docs run: every `bash` block in a shell, every `python` block in Python.

Blocks marked `sh` are shown and not run: they set up machines, or start servers.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from mloc_dagster.compile.compiler import compile_document
from mloc_dagster.compile.loader import parse_documents
from tests.e2e.conftest import ROOT
from tests.e2e.stack import Stack

pytestmark = pytest.mark.e2e

DOCS = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(path: Path, language: str) -> list[str]:
    return [text for kind, text in BLOCK.findall(path.read_text()) if kind == language]


@pytest.fixture
def environment(tmp_path: Path, session_home: Path) -> dict[str, str]:
    """Runs docs on the session's database, in a copy of what they name."""
    for name in ("templates", "dagster.yaml"):
        source = ROOT / name
        copy = shutil.copytree if source.is_dir() else shutil.copy
        copy(source, tmp_path / name)
    return {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "MLOC_HOME": str(session_home),
        "MLOC_RESULTS_URL": str(tmp_path / "results"),
    }


@pytest.fixture(scope="module")
def api_url() -> Iterator[str]:
    """The address of an API, with everything behind it, that is up while this module needs it."""
    with (
        tempfile.TemporaryDirectory(prefix="mloc-") as folder,
        Stack(Path(folder) / "home", workers=1, run_workers=1, api=True) as stack,
    ):
        yield f"http://127.0.0.1:{stack.api_port}"


@pytest.mark.parametrize(
    "path", [each for each in DOCS if blocks(each, "bash")], ids=lambda path: path.name
)
def test_shell_blocks(
    path: Path, environment: dict[str, str], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    script = "set -euo pipefail\n" + "\n".join(blocks(path, "bash"))
    if "$MLOC_API_URL" in script:
        environment["MLOC_API_URL"] = request.getfixturevalue("api_url")
    done = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True,
        timeout=280, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def console_commands(path: Path) -> list[str]:
    """Returns the `mloc` commands shown with a prompt, but those on a reader's own files."""
    lines = "\n".join(blocks(path, "console")).splitlines()
    commands = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
    return [each for each in commands if "mloc" in each and ".yaml" not in each]


@pytest.mark.parametrize(
    "path", [each for each in DOCS if console_commands(each)], ids=lambda path: path.name
)
def test_console_commands(path: Path, environment: dict[str, str], tmp_path: Path) -> None:
    script = "set -euo pipefail\n" + "\n".join(console_commands(path))
    done = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True,
        timeout=280, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    "path", [each for each in DOCS if blocks(each, "python")], ids=lambda path: path.name
)
def test_python_blocks(path: Path, environment: dict[str, str], tmp_path: Path) -> None:
    run = subprocess.run(
        ["mloc", "run", "echo", "--quiet"], cwd=tmp_path, env=environment, capture_output=True,
        text=True, timeout=240, check=True,
    )  # fmt: skip
    folder = run.stdout.strip()
    text = "\n".join(blocks(path, "python"))
    exec(compile(text, str(path), "exec"), {"folder": folder})


@pytest.mark.parametrize(
    ("path", "text"),
    [
        pytest.param(each, text, id=f"{each.name}-{number}")
        for each in DOCS
        for number, text in enumerate(blocks(each, "yaml"))
        if text.startswith("apiVersion")
    ],
)
def test_templates_in_docs_compile(path: Path, text: str) -> None:
    for document in parse_documents(text, path.name):
        compile_document(document)


@pytest.mark.parametrize("path", DOCS, ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", path.read_text()):
        if "://" not in target:
            assert (path.parent / target).exists(), f"{path.name} links to {target}"
