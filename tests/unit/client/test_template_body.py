"""What a submission carries: data files that a template names, lines that stay."""

from __future__ import annotations

from pathlib import Path

import pytest

from mloc_dagster.client.template_body import body_of, body_of_file
from mloc_dagster.compile import compile_text, parse_documents
from mloc_dagster.errors import TemplateError

TEMPLATE = """\
apiVersion: mloc/v1
kind: EchoTask
metadata: {{name: mine}}
spec:
  taskType: echo
  data: {{type: dataset, url: {url}, column: q}}  # a comment
  echo: {{delay_s: 0}}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("t/rows.jsonl", "t/sub/rows.jsonl", "rows.jsonl", "w/here.jsonl"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text('{"q": "x"}\n')
    monkeypatch.chdir(tmp_path / "w")
    return tmp_path / "t"


def write(folder: Path, text: str) -> Path:
    (folder / "t.yaml").write_text(text)
    return folder / "t.yaml"


@pytest.mark.parametrize("url", ["rows.jsonl", "./rows.jsonl", "sub/rows.jsonl"])
def test_a_file_below_the_template_keeps_its_name(folder: Path, url: str) -> None:
    text = TEMPLATE.format(url=url)
    body = body_of_file(write(folder, text))
    name = url.removeprefix("./")
    assert body.text.decode() == text
    assert body.files == {name: folder / name}


def test_an_archive_is_sent_along_and_a_folder_is_not(folder: Path) -> None:
    (folder / "mine.zip").write_bytes(b"x")
    (folder / "mine").mkdir()
    text = TEMPLATE.format(url="rows.jsonl").replace("EchoTask", "InferenceTask")
    text = text.replace("taskType: echo", "model: {adapters: [{path: mine.zip}]}")
    path = write(folder, text.replace("  echo: {delay_s: 0}\n", ""))
    assert sorted(body_of_file(path).files) == ["mine.zip", "rows.jsonl"]
    path.write_text(path.read_text().replace("mine.zip", "./mine"))
    with pytest.raises(TemplateError, match=r"adapters\[0\]\.path: .* into an archive"):
        body_of_file(path)


@pytest.mark.parametrize("written", ["../rows.jsonl", "'../rows.jsonl'", '"../rows.jsonl"'])
def test_a_file_elsewhere_gets_a_name_and_lines_stay(folder: Path, written: str) -> None:
    text = TEMPLATE.format(url=written)
    body = body_of_file(write(folder, text))
    assert body.files == {"rows.jsonl": folder.parent / "rows.jsonl"}
    assert body.text.decode() == text.replace(written, "'rows.jsonl'")


def test_two_files_of_one_name_stay_two(folder: Path) -> None:
    text = TEMPLATE.format(url="rows.jsonl") + "---\n" + TEMPLATE.format(url="../rows.jsonl")
    body = body_of_file(write(folder, text.replace("name: mine", "name: &n mine")))
    assert body.files == {
        "rows.jsonl": folder / "rows.jsonl",
        "2-rows.jsonl": folder.parent / "rows.jsonl",
    }
    assert "url: '2-rows.jsonl'" in body.text.decode()


def test_a_file_of_the_working_folder_is_found(folder: Path) -> None:
    body = body_of_file(write(folder, TEMPLATE.format(url="here.jsonl")))
    assert body.files == {"here.jsonl": folder.parent / "w" / "here.jsonl"}


@pytest.mark.parametrize("url", ["org/set", "/data/x.jsonl", "s3://b/x.jsonl", "missing.jsonl"])
def test_what_is_no_local_file_stays(folder: Path, url: str) -> None:
    text = TEMPLATE.format(url=url)
    body = body_of_file(write(folder, text))
    assert (body.text.decode(), body.files) == (text, {})


@pytest.mark.parametrize("url", ["sub", "'*.jsonl'"])
def test_several_files_are_refused_where_they_stand(folder: Path, url: str) -> None:
    path = write(folder, TEMPLATE.format(url=url))
    with pytest.raises(TemplateError, match=rf"^{path}:6:30: spec.data.url: names several files"):
        body_of_file(path)


def test_a_path_that_is_not_written_plainly_is_refused(folder: Path) -> None:
    path = write(folder, TEMPLATE.format(url='"../rows\\u002ejsonl"'))
    with pytest.raises(TemplateError, match=r":6:30: .*plainly"):
        body_of_file(path)


def test_sets_change_what_is_sent(folder: Path) -> None:
    path = write(folder, TEMPLATE.format(url="../rows.jsonl"))
    body = body_of_file(path, ["spec.echo.delay_s=2", "metadata.owner=me"])
    (document,) = parse_documents(body.text, "sent")
    assert document.mapping["metadata"] == {"name": "mine", "owner": "me"}
    assert document.mapping["spec"]["echo"] == {"delay_s": 2}
    assert document.mapping["spec"]["data"]["url"] == "rows.jsonl"
    assert body.files == {"rows.jsonl": folder.parent / "rows.jsonl"}
    named = body_of_file(path, ["spec.data.url=here.jsonl"])
    assert named.files == {"here.jsonl": folder.parent / "w" / "here.jsonl"}
    with pytest.raises(TemplateError, match=r"^--set spec\.echo\.delay_s: .*got false"):
        body_of_file(path, ["spec.echo.delay_s=no"])


def test_a_mapping_survives_yaml(folder: Path) -> None:
    mapping = {
        "apiVersion": "mloc/v1",
        "kind": "EchoTask",
        "metadata": {"name": "m"},
        "spec": {
            "taskType": "echo",
            "data": {"type": "list", "items": ["yes", "1e5", "ü\n", "null"]},
            "echo": {"delay_s": 1e-7},
        },
    }
    body = body_of(mapping, {"a.jsonl": b""})
    assert body.files == {"a.jsonl": b""}
    (template,), findings = compile_text(body.text, "sent")
    assert findings == []
    assert template.document == mapping
