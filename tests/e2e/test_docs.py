"""README and docs run: every `bash` block in a shell, every `python` block in Python.

Blocks marked `sh` are shown and not run: each says above itself why not.
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

from mloc_dagster.compile import compile_document, parse_documents
from mloc_dagster.home import StackLayout
from mloc_dagster.models import BUILTIN_MODELS
from mloc_dagster.services import make_plan
from mloc_dagster.settings import Settings
from tests.e2e.conftest import ROOT
from tests.e2e.stack import Stack
from tests.ports import free_port

pytestmark = pytest.mark.e2e

DOCS = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
NOT_RUN = re.compile(r"<!-- not run: \S.* -->")
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(path: Path, language: str) -> list[str]:
    return [text for kind, text in BLOCK.findall(path.read_text()) if kind == language]


@pytest.fixture
def environment(tmp_path: Path, session_home: Path) -> dict[str, str]:
    """Runs docs on the session's database, in a copy of what they name."""
    for name in ("templates", "dagster.yaml", "pyproject.toml"):
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
        timeout=900, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_shell_block_that_is_not_run_says_why() -> None:
    silent: list[str] = []
    for path in (*DOCS, ROOT / "benchmarks" / "README.md"):
        lines = path.read_text().splitlines()
        silent += [
            f"{path.name}:{number}"
            for number, line in enumerate(lines, 1)
            if line == "```sh" and not NOT_RUN.fullmatch(lines[number - 2])
        ]
    assert silent == []


SHOWN_FILE = re.compile(
    r"^<!-- file: (\S+) -->\n`\S+`:\n\n```\w+\n(.*?)^```$", re.MULTILINE | re.DOTALL
)


def test_files_that_are_shown_are_those_that_are_tested() -> None:
    shown = SHOWN_FILE.findall((ROOT / "docs" / "extending.md").read_text())
    plugin = ROOT / "tests" / "plugin"
    files = [each for each in plugin.rglob("*") if each.is_file() and each.name != "__init__.py"]
    assert {name for name, _ in shown} == {
        str(each.relative_to(ROOT))
        for each in files
        if each.suffix in (".py", ".toml", ".yaml", ".jsonl")
    }
    for name, text in shown:
        assert text == (ROOT / name).read_text(), name


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
        timeout=900, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    "path", [each for each in DOCS if blocks(each, "python")], ids=lambda path: path.name
)
def test_python_blocks(path: Path, environment: dict[str, str], tmp_path: Path) -> None:
    run = subprocess.run(
        ["mloc", "run", "echo", "--quiet"], cwd=tmp_path, env=environment, capture_output=True,
        text=True, timeout=900, check=True,
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
        if text.startswith("apiVersion") and each.name != "extending.md"  # needs its package
    ],
)
def test_templates_in_docs_compile(path: Path, text: str) -> None:
    for document in parse_documents(text, path.name):
        compile_document(document)


def test_every_setting_and_component_stands_in_the_docs(tmp_path: Path) -> None:
    text = "\n".join(path.read_text() for path in DOCS)
    variables = [f"MLOC_{name.upper()}" for name in Settings.model_fields]
    assert [each for each in variables if each not in text] == []
    layout = StackLayout(tmp_path)
    layout.create()
    ports = Settings(api_port=free_port(), webserver_port=free_port(), redis_url=None)
    plan = make_plan(layout, ports, worker_gpus=(None,), run_workers=1)
    table = (ROOT / "docs" / "fleet.md").read_text()
    assert [each for each in plan.components() if f"| `{each}`" not in table] == []


def test_the_size_of_the_model_that_ships_is_the_true_one() -> None:
    shown = (ROOT / "docs" / "cli.md").read_text()
    assert re.findall(r"^tiny-chat +([0-9,]+)", shown, re.MULTILINE) == [
        f"{BUILTIN_MODELS['tiny-chat'].parameters:,}"
    ]


@pytest.mark.parametrize("path", DOCS, ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", path.read_text()):
        if "://" not in target:
            assert (path.parent / target).exists(), f"{path.name} links to {target}"
