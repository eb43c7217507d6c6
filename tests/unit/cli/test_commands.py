"""Commands that start nothing: validate, schema, templates, and what is refused before a run."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from glob import glob
from pathlib import Path

import pytest

from mloc_dagster.cli import entry
from mloc_dagster.settings import settings

GOOD = """\
apiVersion: mloc/v1
kind: EchoTask
metadata: {name: good}
spec:
  taskType: echo
  data: {type: list, items: [a, b]}
"""
BAD = GOOD.replace("taskType", "taskTyp").replace("items", "itens")


@pytest.fixture(autouse=True)
def _in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLOC_TEMPLATES_DIR", raising=False)
    settings.cache_clear()


class Mloc:
    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *arguments: str) -> tuple[int, str, str]:
        code = entry.run(arguments)
        out, err = self._capsys.readouterr()
        return code, out, err


@pytest.fixture
def mloc(capsys: pytest.CaptureFixture[str]) -> Mloc:
    return Mloc(capsys)


def test_a_variable_with_a_wrong_value_is_named_with_what_it_may_be(
    mloc: Mloc, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLOC_REDIS_PORT", "99999")
    monkeypatch.setenv("MLOC_ENGINE", "vlm")
    code, out, err = mloc("list")
    assert (code, out) == (2, "")
    assert err.splitlines() == [
        "MLOC_ENGINE is 'vlm': unknown engine; did you mean 'vllm'?",
        "MLOC_REDIS_PORT is '99999': input should be less than or equal to 65535",
    ]


def test_validate_lists_every_error_of_every_file(mloc: Mloc, tmp_path: Path) -> None:
    (tmp_path / "good.yaml").write_text(GOOD)
    (tmp_path / "bad.yaml").write_text(BAD)
    (tmp_path / "worse.yaml").write_text("a: [")
    code, out, err = mloc("validate", "good.yaml", "bad.yaml", "worse.yaml")
    lines = out.splitlines()
    assert code == 2
    assert err == ""
    assert lines[0].startswith("bad.yaml:5:3: spec.taskTyp: ")
    assert any(line.startswith("bad.yaml:6:") for line in lines)
    assert any(line.startswith("worse.yaml:") for line in lines)
    assert lines[-1] == f"1 valid template, {len(lines) - 1} errors, 0 warnings"


def test_validate_searches_folders(mloc: Mloc, tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "one.yaml").write_text(GOOD)
    (tmp_path / "a" / "b" / "two.yml").write_text(GOOD)
    (tmp_path / "empty").mkdir()
    assert mloc("validate", "a")[:2] == (0, "2 valid templates, 0 errors, 0 warnings\n")
    code, _, err = mloc("validate", "empty")
    assert (code, err) == (2, "mloc: no *.yaml or *.yml file below empty\n")


def test_validate_json_is_one_document(mloc: Mloc, tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text(BAD)
    code, out, _ = mloc("validate", "bad.yaml", "--json")
    document = json.loads(out)
    assert code == 2
    assert document["ok"] is False
    assert document["errors"] == len(document["diagnostics"]) > 1
    assert {"file", "line", "column", "path", "message", "severity"} <= set(
        document["diagnostics"][0]
    )


def test_warnings_fail_only_when_strict(mloc: Mloc, tmp_path: Path) -> None:
    (tmp_path / "old.yaml").write_text(GOOD.replace("list,", "list, notes: x,"))
    code, out, _ = mloc("validate", "old.yaml")
    assert code == 0
    assert out.startswith("old.yaml:6:22: spec.data.notes: warning: ")
    assert mloc("validate", "old.yaml", "--strict")[0] == 2


def test_schema_is_json_schema(mloc: Mloc) -> None:
    code, out, _ = mloc("schema")
    assert code == 0
    assert "$schema" in json.loads(out)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("run", "ecko"), "mloc: unknown template 'ecko'; did you mean 'echo'?"),
        (("run", "god.yaml"), "god.yaml: no such file; did you mean 'good.yaml'?"),
        (("run", "good.yaml", "--set", "spec.ecko.delay_s=1"), "'echo'"),
        (("run", "good.yaml", "--set", "spec.echo.delay_s"), "expected path=value"),
        (("run", "good.yaml", "--resume", "x"), "either a template or --resume"),
        (("run",), "either a template or --resume"),
        (("run", "good.yaml", "--retry-errors"), "goes with --resume"),
        (("run", "--resume", "gone"), "unknown task"),
        (("run", "--resume", "../x"), "is no task id"),
        (("templates", "show", "demoo"), "did you mean 'demo'?"),
        (("templates", "new", "-x-"), ""),
        (("nonsense",), "No such command"),
        (("run", "good.yaml", "--colour"), "No such option"),
    ],
)
def test_what_is_wrong_is_said_in_one_message(
    mloc: Mloc, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    (tmp_path / "good.yaml").write_text(GOOD)
    code, out, err = mloc(*arguments)
    assert code == 2
    assert out == ""
    assert message in err
    assert "Traceback" not in err


def test_json_says_what_is_wrong_too(mloc: Mloc, tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text(BAD)
    code, out, _ = mloc("run", "bad.yaml", "--json")
    document = json.loads(out)
    assert code == 2
    assert document["ok"] is False
    assert document["tasks"] == []
    assert "bad.yaml:5:3" in document["failures"][0]


RAG = """\
  data: {type: list, items: [a]}
  qdrant: {url: u, collection: c}
  embedding: {model: m}
"""


@pytest.mark.parametrize("command", ["run", "estimate"])
def test_a_task_type_that_is_not_built_yet_is_refused_with_its_line(
    mloc: Mloc, tmp_path: Path, command: str, unbuilt: str
) -> None:
    spec = f"spec:\n{RAG}"
    text = GOOD.partition("spec:")[0].replace("Echo", "Retrieval") + spec
    (tmp_path / "rag.yaml").write_text(text)
    code, out, err = mloc(command, "rag.yaml")
    assert (code, out) == (2, "")
    assert err.startswith("rag.yaml:5:3:")
    assert f"spec.taskType: task type {unbuilt!r} is not built yet" in err
    code, out, _ = mloc("validate", "rag.yaml")
    assert code == 0
    assert f"warning: task type {unbuilt!r} is not built yet" in out


def test_a_fault_of_ours_shows_no_traceback_unless_asked(
    mloc: Mloc, monkeypatch: pytest.MonkeyPatch
) -> None:
    def explode() -> None:
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr("mloc_dagster.schema.template_json_schema", explode)
    code, _, err = mloc("schema")
    assert code == 1
    assert "ZeroDivisionError: by zero" in err
    assert "MLOC_DEBUG=1" in err
    assert "Traceback" not in err
    monkeypatch.setenv("MLOC_DEBUG", "1")
    assert "Traceback" in mloc("schema")[2]


def test_version(mloc: Mloc) -> None:
    from mloc_dagster import __version__

    assert mloc("--version")[:2] == (0, f"mloc {__version__}\n")


def test_library_is_listed_and_shown(mloc: Mloc) -> None:
    entries = json.loads(mloc("templates", "list", "--json")[1])
    assert all(entry["valid"] for entry in entries)
    echo = next(entry for entry in entries if entry["name"] == "core/echo")
    assert echo["task_types"] == ["echo"]
    assert mloc("templates", "show", "echo")[1] == Path(echo["path"]).read_text(encoding="utf-8")
    assert "core/echo" in mloc("templates", "list")[1]


def test_new_copies_every_library_template_so_that_it_stays_valid(
    mloc: Mloc, tmp_path: Path
) -> None:
    for each in json.loads(mloc("templates", "list", "--json")[1]):
        target = tmp_path / f"{each['name'].replace('/', '-')}.yaml"
        code, out, _ = mloc(
            "templates", "new", "mine", "--from", each["name"], "--output", str(target)
        )
        assert (code, out) == (0, f"{target}\n")
        assert "name: mine" in target.read_text(encoding="utf-8")
        assert f"mloc run {target}" in target.read_text(encoding="utf-8")
        assert mloc("validate", str(target))[0] == 0
        for line in target.read_text(encoding="utf-8").splitlines():
            key, _, value = line.strip().partition(": ")
            if key == "url" and "://" not in value and "." in value:
                assert glob(str(tmp_path / value)), line  # noqa: PTH207  it may be absolute
            named = re.findall(r"[^\s`=]+/[^\s`,]+\w", line) if line.startswith("#") else []
            for path in filter(lambda path: re.search(r"\.(yaml|jsonl?)$", path), named):
                assert (tmp_path / path).exists(), line


def test_new_never_overwrites(mloc: Mloc, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("precious")
    code, _, err = mloc("templates", "new", "mine")
    assert (code, err) == (2, "mloc: mine.yaml exists; choose another --output\n")
    assert (tmp_path / "mine.yaml").read_text() == "precious"


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["run", "--help"],
        ["validate", "good.yaml"],
        ["schema"],
        ["templates", "list"],
        ["run", "good.yaml", "--set", "x"],
    ],
)
def test_light_commands_import_nothing_heavy(tmp_path: Path, arguments: list[str]) -> None:
    (tmp_path / "good.yaml").write_text(GOOD)
    code = f"""
import sys
from mloc_dagster.cli.entry import run
run({arguments!r})
loaded = {{name.partition(".")[0] for name in sys.modules}}
heavy = {{"dagster", "dagster_webserver", "torch", "transformers", "datasets", "pyarrow", "numpy"}}
sys.exit(f"imported: {{heavy & loaded}}" if heavy & loaded else 0)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_reader_that_leaves_early_is_no_error(tmp_path: Path) -> None:
    command = f"{sys.executable} -m mloc_dagster.cli schema | head -n 1"
    done = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.stderr == ""


def test_validate_and_run_look_at_data_files_first(mloc: Mloc, tmp_path: Path) -> None:
    missing = GOOD.replace("{type: list, items: [a, b]}", "{type: dataset, url: gone.jsonl}")
    assert missing != GOOD
    (tmp_path / "good.yaml").write_text(GOOD)
    (tmp_path / "missing.yaml").write_text(missing)
    code, out, _ = mloc("validate", "good.yaml", "missing.yaml")
    assert code == 2
    assert "spec.data.url: gone.jsonl: no such file" in out
    assert out.endswith("1 valid template, 1 error, 0 warnings\n")
    assert mloc("validate", "missing.yaml", "--no-data")[0] == 0
    code, out, err = mloc("run", "missing.yaml")
    assert (code, out) == (2, "")
    assert "missing.yaml:6:" in err
    assert "gone.jsonl: no such file" in err


@pytest.mark.parametrize(
    ("data", "evaluation", "told"),
    [
        (
            "keep: [anser]",
            "{metrics: [json_valid]}",
            "spec.data.keep: q.jsonl has no column 'anser'",
        ),
        (
            "prompt: '{qestion}'",
            "{metrics: [json_valid]}",
            "spec.data.prompt: q.jsonl: data.prompt: ",
        ),
        (
            "messages: [{role: user, content: '{qestion}'}]",
            "{metrics: [json_valid]}",
            "spec.data.messages: q.jsonl: data.messages: ",
        ),
        (
            "column: question",
            "{metrics: [f1], reference: anser}",
            "spec.evaluation.reference: rows have no column 'anser'",
        ),
    ],
)
def test_a_column_that_is_not_there_is_told_where_it_is_named(
    mloc: Mloc, tmp_path: Path, data: str, evaluation: str, told: str
) -> None:
    (tmp_path / "q.jsonl").write_text('{"question": "q", "answer": "a"}\n')
    wrong = GOOD.replace("{type: list, items: [a, b]}", f"{{type: dataset, url: q.jsonl, {data}}}")
    (tmp_path / "t.yaml").write_text(f"{wrong.rstrip()}\n  evaluation: {evaluation}\n")
    code, out, _ = mloc("validate", "t.yaml")
    assert code == 2
    assert told in out
    assert "did you mean" in out


def test_validate_waits_for_no_pipe(mloc: Mloc, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "t.yaml")
    code, out, _ = mloc("validate", "t.yaml")
    assert code == 2
    assert out.startswith("t.yaml: is a pipe or a device; name a regular file\n")
