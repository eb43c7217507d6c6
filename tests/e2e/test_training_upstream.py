"""Training templates in the old spelling, run to the end on a small model and local files.

Each construct of `tests/templates` always is. A folder of older templates is taken as a whole where
it lies beside the checkout, or where `OLD_TEMPLATES` says.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml

from mloc_dagster.compile import CompiledTemplate, compile_mapping
from mloc_dagster.local_run import run_template
from mloc_dagster.models import builtin_model_path
from mloc_dagster.results import open_store, read_training
from mloc_dagster.schema import TrainingSpec

pytest.importorskip("torch")
pytest.importorskip("trl")

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
CONSTRUCTS = ("lora_stages", "preferences", "sft", "sft_stages")
OLD = Path(os.environ.get("OLD_TEMPLATES", ROOT.parent / "shared" / "upstream_templates"))
TRAINS = ("lora_sft", "sft", "dpo", "ppo")
MODEL = {"type": "builtin", "identifier": "tiny-chat"}
STEPS = 2
ROWS = 120
"""Of each split; the old templates take rows 60 to 100, and 2 %."""


def documents(path: Path) -> Iterator[Any]:
    yield from (
        pytest.param(each, id=f"{path.stem}-{each['metadata']['name']}")
        for each in yaml.safe_load_all(path.read_text())
    )


def training_documents(folder: Path) -> Iterator[Any]:
    for path in sorted(folder.glob("*.yaml")):
        for each in documents(path):
            (document,) = each.values
            spec = document["spec"]
            types = {spec.get("taskType"), *(s["spec"].get("taskType") for s in stages(spec))}
            if not types.isdisjoint(TRAINS):
                yield each


def stages(spec: Mapping[str, Any]) -> list[dict[str, Any]]:
    return spec.get("stages", [])


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of two classifiers with weights drawn at random, by their `reward_model.type`."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    place, folder = str(builtin_model_path("tiny-chat")), tmp_path_factory.mktemp("judge")
    for kind, names in (("classification", ["good"]), ("sentiment", ["negative", "positive"])):
        model = AutoModelForSequenceClassification.from_pretrained(
            place, id2label=dict(enumerate(names)), label2id={n: k for k, n in enumerate(names)}
        )
        model.save_pretrained(folder / kind)
        AutoTokenizer.from_pretrained(place).save_pretrained(folder / kind)
    return folder


@pytest.fixture(scope="module")
def receiver() -> Iterator[tuple[str, list[str]]]:
    """An HTTP server that takes everything: its URL, and the paths that came."""
    paths: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            while self.headers.get("Transfer-Encoding") == "chunked":
                size = int(self.rfile.readline(), 16)
                self.rfile.read(size + 2)
                if size == 0:
                    break
            paths.append(self.path)
            self.send_response(201)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/results", paths
        server.shutdown()
        thread.join()


class Localised:
    """Makes of a template one that runs here: another model, local files, few steps.

    Args:
        folder: For the files.
        judge: The classifiers.
        url: Who takes results.
    """

    def __init__(self, folder: Path, judge: Path, url: str) -> None:
        self._folder, self._judge, self._url = folder, judge, url
        self._columns: dict[str, set[str]] = {}

    def compiled(self, document: Mapping[str, Any]) -> CompiledTemplate:
        found = json.loads(json.dumps(document))
        found["spec"]["enforce_cpu"] = True
        for spec in (found["spec"], *(each["spec"] for each in stages(found["spec"]))):
            self._localise(spec, trains="training" in spec or spec is found["spec"])
        return compile_mapping(found)

    def _localise(self, spec: dict[str, Any], *, trains: bool) -> None:
        if "source" in spec.get("model", {}):
            spec["model"]["source"] = MODEL
        if "reward_model" in spec:
            block = spec["reward_model"]
            block["identifier"] = str(self._judge / block["type"])
        if "data" in spec:
            self._make_files(spec["data"])
        if spec.get("output", {}).get("destination", {}).get("type") == "http":
            spec["output"]["destination"]["url"] = self._url
        if trains and "stages" not in spec:
            training = spec.setdefault("training", {})
            training["steps" if "steps" in training else "max_steps"] = STEPS
        if "generation" in spec:
            spec["generation"]["max_new_tokens"] = 8

    def _make_files(self, data: dict[str, Any]) -> None:
        """Puts a folder with a file for each split in the place of a dataset of the hub."""
        key = "url" if "url" in data else "dataset_name"
        if key not in data:
            return
        used = self._columns.setdefault(data[key], set())
        used |= {text for name, text in data.items() if name.endswith("column")}
        folder = self._folder / data[key]
        folder.mkdir(parents=True, exist_ok=True)
        rows = [{name: f"{name} {number}" for name in sorted(used)} for number in range(ROWS)]
        for split in ("train", "test"):
            text = "\n".join(map(json.dumps, rows))
            (folder / f"{split}.jsonl").write_text(text + "\n")
        data[key] = str(folder)
        for name in ("name", "config_name"):  # a file has no configurations
            data.pop(name, None)


@pytest.fixture
def localised(tmp_path: Path, judge: Path, receiver: tuple[str, list[str]]) -> Localised:
    return Localised(tmp_path / "data", judge, receiver[0])


@pytest.mark.parametrize(
    "document",
    [
        each
        for name in CONSTRUCTS
        for each in documents(ROOT / "tests" / "templates" / f"{name}.yaml")
    ],
)
def test_each_construct_trains_and_leaves_what_it_promises(
    document: Mapping[str, Any],
    localised: Localised,
    instance: dg.DagsterInstance,
    receiver: tuple[str, list[str]],
) -> None:
    check(localised.compiled(document), instance, receiver[1])


@pytest.mark.skipif(not OLD.is_dir(), reason="the old templates are not here")
@pytest.mark.parametrize("document", list(training_documents(OLD)))
def test_each_old_template_trains_and_leaves_what_it_promises(
    document: Mapping[str, Any],
    localised: Localised,
    instance: dg.DagsterInstance,
    receiver: tuple[str, list[str]],
) -> None:
    check(localised.compiled(document), instance, receiver[1])


def check(compiled: CompiledTemplate, instance: dg.DagsterInstance, received: list[str]) -> None:
    """Runs a template; asserts that every task of it left what the template wants of it."""
    outcome = run_template(compiled, instance)
    assert outcome.succeeded, outcome.failures
    assert [each.node for each in outcome.tasks] == [each.task.name for each in compiled.tasks]
    for node, done in zip(compiled.tasks, outcome.tasks, strict=True):
        spec, folder = node.task.spec, open_store().task(done.task_id)
        result = json.loads(folder.read_bytes("responses.json"))["result"]
        if isinstance(spec, TrainingSpec):
            archive = f"${{{done.node}.result.{final_name(spec)}_archive_url}}"
            check_training(spec, folder.url, result, archived=archive in str(compiled.tasks))
            assert read_training(folder).steps == STEPS
        else:
            assert all(item["output"] is not None for item in result["items"])
        if spec.output.destination.type == "http":
            assert f"/results/{done.task_id}/files" in received


def final_name(spec: TrainingSpec) -> str:
    return "final_model" if spec.lora is None else "final_lora"


def check_training(
    spec: TrainingSpec, folder: str, result: Mapping[str, Any], *, archived: bool
) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    assert result["training_successful"] is True
    assert result["training_time_seconds"] > 0
    assert result["dataset_size"] > 0
    name = final_name(spec)
    if not spec.training.save_model:
        assert f"{name}_path" not in result
        place = f"{folder}/checkpoints/checkpoint-{STEPS}"
    else:
        place = result[f"{name}_path"]
    base = place if spec.lora is None else builtin_model_path("tiny-chat")
    model: Any = AutoModelForCausalLM.from_pretrained(base)
    if spec.lora is not None:
        model = PeftModel.from_pretrained(model, place)
    assert model.generate(torch.tensor([[1, 2, 3]]), max_new_tokens=1).shape == (1, 4)
    assert (f"{name}_archive_url" in result) == archived
    if archived:
        assert Path(result[f"{name}_archive_url"].removeprefix("file://")).is_file()
