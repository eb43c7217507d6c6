"""Adapters merged for vLLM are those of the template, whatever was merged before."""

from __future__ import annotations

import json
import shutil
import threading
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mloc_dagster.errors import TerminalError, TransientError
from mloc_dagster.executors.engines.vllm import (
    engine as vllm_engine,
    requests as vllm_adapters,
    start as vllm_start,
)
from mloc_dagster.executors.engines.vllm.parsers import ParserChoice
from mloc_dagster.executors.engines.vllm.requests import (
    ServedAdapters,
    load_adapters,
    prepare_adapters,
)
from mloc_dagster.executors.engines.vllm.start import EnginePlan, plan_engine
from mloc_dagster.models import builtin_model_path
from mloc_dagster.schema import Adapter, InferenceSpec


def spec_of(kind: str, identifier: str) -> InferenceSpec:
    return InferenceSpec.model_validate(
        {
            "taskType": "inference",
            "model": {"source": {"type": kind, "identifier": identifier}, "engine": "vllm"},
            "data": {"type": "list", "items": ["x"]},
        }
    )


@pytest.fixture(scope="session")
def lora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random adapter of tiny-chat."""
    torch = pytest.importorskip("torch")
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM

    torch.manual_seed(3)
    base = AutoModelForCausalLM.from_pretrained(builtin_model_path("tiny-chat"))
    options = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj"], init_lora_weights=False)
    folder = tmp_path_factory.mktemp("lora") / "voice"
    peft.get_peft_model(base, options).save_pretrained(folder)
    return folder


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return Path(shutil.copytree(builtin_model_path("tiny-chat"), tmp_path / "base"))


@pytest.fixture
def voice(lora: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(lora, tmp_path / "voice"))


def planned(base: Path | str) -> EnginePlan:
    kind = "local" if isinstance(base, Path) else "huggingface"
    return plan_engine(spec_of(kind, str(base)))


@pytest.fixture(autouse=True)
def build(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM's CPU build is installed: so the plan says, and nothing here starts it."""
    monkeypatch.setattr(vllm_start, "vllm_build", lambda: "cpu")


def merge(base: Path | str, *voices: Path) -> Path:
    """Returns where the model lies that vLLM would be given; two adapters at least are merged."""
    adapters = [Adapter(path=str(voice)) for voice in voices * (2 if len(voices) == 1 else 1)]
    plan, served = prepare_adapters(planned(base), adapters)
    assert not served.requests
    return Path(plan.place)


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def test_the_same_adapters_are_merged_once(base: Path, voice: Path) -> None:
    first = merge(base, voice)
    written = (first / "model.safetensors").stat().st_mtime_ns

    assert merge(base, voice) == first
    assert (first / "model.safetensors").stat().st_mtime_ns == written
    assert [each.name for each in first.parent.iterdir()] == [first.name]


def test_an_adapter_with_another_scale_is_another_one(base: Path, voice: Path) -> None:
    before = merge(base, voice)
    config = voice / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"lora_alpha": 64}))

    after = merge(base, voice)

    assert weights(after) != weights(before)


def test_a_model_with_another_chat_template_is_another_one(base: Path, voice: Path) -> None:
    before = merge(base, voice)
    (base / "chat_template.jinja").write_text("{{ messages[0].content }}!")

    after = merge(base, voice)

    assert after != before
    assert (after / "chat_template.jinja").read_text() == "{{ messages[0].content }}!"


def test_large_weights_count_to_the_last_byte(base: Path, voice: Path) -> None:
    before = merge(base, voice)
    data = bytearray(weights(base))
    middle = len(data) // 2
    data[middle : middle + 16] = b"\x3f" * 16  # in the middle of some tensor
    (base / "model.safetensors").write_bytes(data)

    assert weights(merge(base, voice)) != weights(before)


def test_two_workers_may_merge_the_same_at_once(
    base: Path, voice: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    both_have_merged, one_at_a_time = threading.Barrier(2), threading.Lock()
    merge_now, settle = vllm_adapters._merge, vllm_adapters._settle

    def merge_in_turn(*given: Any) -> None:
        with one_at_a_time:  # workers are processes; within one transformers loads one model a time
            merge_now(*given)

    def settle_together(scratch: Path, target: Path) -> None:
        both_have_merged.wait(60)
        settle(scratch, target)

    monkeypatch.setattr(vllm_adapters, "_merge", merge_in_turn)
    monkeypatch.setattr(vllm_adapters, "_settle", settle_together)
    found: list[Path] = []
    threads = [threading.Thread(target=lambda: found.append(merge(base, voice))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(found) == 2
    assert found[0] == found[1]
    assert [each.name for each in found[0].parent.iterdir()] == [found[0].name]


def test_files_that_change_while_they_are_merged_are_not_kept(
    base: Path, voice: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    merge_now = vllm_adapters._merge

    def merge_and_change(*given: Any) -> None:
        merge_now(*given)
        (base / "chat_template.jinja").write_text("{{ messages[0].content }}!")

    monkeypatch.setattr(vllm_adapters, "_merge", merge_and_change)
    with pytest.raises(TransientError, match="changed while they were merged"):
        merge(base, voice)

    monkeypatch.undo()
    assert not list(merge(base, voice).parent.glob(".*"))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub's cache with the model `someone/tiny`, and no network."""
    root = tmp_path / "hub" / "models--someone--tiny"
    for commit in ("a" * 40, "b" * 40):
        shutil.copytree(builtin_model_path("tiny-chat"), root / "snapshots" / commit)
    (root / "refs").mkdir()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(root.parent))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return root


def test_a_branch_that_moved_on_is_another_model(hub: Path, voice: Path) -> None:
    branch = hub / "refs" / "main"
    branch.write_text("a" * 40)
    before = merge("someone/tiny", voice)
    assert merge("someone/tiny", voice) == before

    assert planned("someone/tiny").arguments["revision"] == "a" * 40
    branch.write_text("b" * 40)
    newest = hub / "snapshots" / ("b" * 40) / "chat_template.jinja"
    newest.write_text("{{ messages[0].content }}!")
    after = merge("someone/tiny", voice)

    assert after != before
    assert (after / "chat_template.jinja").read_text() == "{{ messages[0].content }}!"


class EngineDeadError(Exception):
    """Named as vLLM's own."""


class FakeLlm:
    """Refuses adapters as an engine in a process of its own does."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def add_lora(self, request: Any) -> None:
        raise self.error


def test_an_adapter_that_vllm_refuses_will_be_refused_again() -> None:
    served = ServedAdapters({"loud": object()})

    with pytest.raises(TerminalError, match="cannot serve the adapter 'loud': rank 64 is more"):
        load_adapters(FakeLlm(Exception("rank 64 is more than 16")), served)
    with pytest.raises(TransientError, match="died loading the adapter 'loud'"):
        load_adapters(FakeLlm(EngineDeadError("see above")), served)


TINY = spec_of("builtin", "tiny-chat")


def test_an_engine_that_cannot_serve_its_adapters_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    llm, ended = FakeLlm(Exception("no such module")), []
    folders = ExitStack()
    folders.callback(ended.append, "folders")
    served = ServedAdapters({"loud": object()}, folders=folders)
    monkeypatch.setattr(
        vllm_engine, "plan_engine", lambda spec: EnginePlan(TINY.model.source, str(tmp_path), {})
    )
    monkeypatch.setattr(vllm_engine, "prepare_environment", lambda: None)
    monkeypatch.setattr(vllm_engine, "prepare_adapters", lambda plan, _: (plan, served))
    parsers = SimpleNamespace(choice=ParserChoice(), check=lambda block: None)
    monkeypatch.setattr(vllm_engine, "answer_parsers", lambda plan, options: parsers)
    monkeypatch.setattr(vllm_engine, "start_engine", lambda plan: llm)
    monkeypatch.setattr(vllm_engine, "PromptSteps", lambda llm, given: None)
    monkeypatch.setattr(vllm_engine, "processor_template", lambda llm: None)
    monkeypatch.setattr(vllm_engine, "shut_down", ended.append)

    with pytest.raises(TerminalError, match="no such module"):
        vllm_engine.load_engine(TINY)

    assert ended == [llm, "folders"]


def test_a_branch_is_not_merged_where_the_hub_does_not_say_which_commit_it_is(
    voice: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)

    with pytest.raises(TransientError, match="which commit of 'someone/unknown'"):
        merge("someone/unknown", voice)


def test_an_engine_that_cannot_be_measured_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    llm, ended = object(), []

    def unmeasurable(_: Any) -> int:
        raise EngineDeadError("see above")

    monkeypatch.setattr(vllm_engine, "start_engine", lambda plan: llm)
    monkeypatch.setattr(vllm_engine, "PromptSteps", lambda llm, given: None)
    monkeypatch.setattr(vllm_engine, "processor_template", lambda llm: None)
    monkeypatch.setattr(vllm_engine, "in_process", unmeasurable)
    monkeypatch.setattr(vllm_engine, "shut_down", ended.append)

    with pytest.raises(EngineDeadError):
        vllm_engine.VllmEngine(EnginePlan(TINY.model.source, str(tmp_path), {}), ServedAdapters())

    assert ended == [llm]
