"""What answers a task's rows: any single changed ingredient of it is another identity."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mloc_dagster.executors import reuse_identity
from mloc_dagster.executors.engines.transformers.engine_type import TRANSFORMERS
from mloc_dagster.executors.engines.vllm import loader
from mloc_dagster.executors.engines.vllm.engine_type import argument_names
from mloc_dagster.executors.reuse_identity import (
    LoadedFiles,
    NoReuseError,
    file_stamps,
    model_identity,
    remember_files,
)
from mloc_dagster.schema import Adapter, ModelSource, TransformersOptions, spec_of
from tests.unit.executors.test_row_reuse import CountingEngine


class Case:
    """A task and its engine, with one thing changed by each test."""

    def __init__(self, folder: Path) -> None:
        self.model, self.adapter = folder / "model", folder / "adapter"
        for place in (self.model, self.adapter):
            place.mkdir()
            (place / "config.json").write_text("{}")
            (place / "weights.safetensors").write_bytes(b"weights")
        self.engine = CountingEngine()
        self.document: dict[str, Any] = {
            "taskType": "inference",
            "reuse": True,
            "model": {
                "engine": "vllm",
                "source": {"type": "local", "identifier": str(self.model)},
                "adapters": [{"path": str(self.adapter), "name": "one"}],
                "vllm": {"max_model_len": 64},
            },
            "data": {"type": "list", "items": ["unused"]},
        }

    def identity(self) -> bytes:
        spec = spec_of(copy.deepcopy(self.document))
        remember_files(self.engine, LoadedFiles(file_stamps(spec)))
        return model_identity(spec, self.engine)


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return Case(tmp_path)


def put(*path: str, to: Any) -> Callable[[Case], None]:
    def make(case: Case) -> None:
        block = case.document
        for step in path[:-1]:
            block = block.setdefault(step, {})
        block[path[-1]] = to

    return make


def engine(**attributes: Any) -> Callable[[Case], None]:
    def make(case: Case) -> None:
        for name, value in attributes.items():
            setattr(case.engine, name, value)

    return make


def embedding(case: Case) -> None:
    case.document["taskType"] = "embedding"


def move(case: Case) -> None:
    place = case.model.rename(case.model.with_name("moved"))
    case.document["model"]["source"]["identifier"] = str(place)


def rename_a_file(case: Case) -> None:
    (case.model / "weights.safetensors").rename(case.model / "other.safetensors")


def swap_two_files(case: Case) -> None:
    (case.model / "weights.safetensors").write_bytes(b"{}")
    (case.model / "config.json").write_bytes(b"weights")


def another_adapter_option(case: Case) -> None:
    case.document["model"]["adapters"][0]["apply"] = "request"


CHANGES: dict[str, Callable[[Case], None]] = {
    "task type": embedding,
    "engine's revision": engine(revision="sha256:1"),
    "engine's version": engine(label="counting 2"),
    "kind of device": engine(device="cuda:0"),
    "GPUs": put("resources", "hardware", "gpu", "count", to=2),
    "place": move,
    "dtype": put("model", "transformers", "dtype", to="float32"),
    "attention": put("model", "transformers", "attn_implementation", to="eager"),
    "vLLM's argument": put("model", "vllm", "max_model_len", to=65),
    "another of vLLM's arguments": put("model", "vllm", "dtype", to="float32"),
    "another of vLLM's parsers": put("model", "vllm", "tool_call_parser", to="hermes"),
    "another response template": put("model", "transformers", "response_template", to="qwen3"),
    "no adapter": put("model", "adapters", to=[]),
    "how an adapter is applied": another_adapter_option,
    "a byte of the weights": lambda case: (case.model / "weights.safetensors").write_bytes(b"x"),
    "a byte of the adapter": lambda case: (case.adapter / "weights.safetensors").write_bytes(b"x"),
    "one file more": lambda case: (case.model / "added_tokens.json").write_bytes(b"{}"),
    "a file's name": rename_a_file,
    "which file holds what": swap_two_files,
}


@pytest.mark.parametrize("name", CHANGES)
def test_each_ingredient_counts(case: Case, name: str) -> None:
    before = case.identity()
    assert case.identity() == before
    CHANGES[name](case)
    assert case.identity() != before


@pytest.mark.parametrize("name", ["__version__", "FORMAT"])
def test_versions_of_our_own_count(case: Case, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = case.identity()
    monkeypatch.setattr(reuse_identity, name, "other")
    assert case.identity() != before


def test_what_a_model_is_made_of_is_decided_on_here() -> None:
    """A field that is new in the schema has to be an ingredient, or to be left out on purpose."""
    assert set(ModelSource.model_fields) == {
        "type", "identifier", "revision", "trust_remote_code", "base_url", "api_key"
    }  # fmt: skip
    # Of an endpoint the address and the revision's name count; who pays changes no answer.
    assert set(Adapter.model_fields) >= {"path", "url", "name", "apply"}
    kept = set(TransformersOptions.model_fields) - TRANSFORMERS.batching - TRANSFORMERS.placing
    quantised = {each for each in kept if each.startswith(("load_in_", "bnb_"))}
    assert kept - quantised == {
        "dtype", "attn_implementation", "trust_remote_code", "response_template"
    }  # fmt: skip
    assert quantised, "weights of fewer bits answer otherwise"


def test_batching_does_not_count(case: Case) -> None:
    before = case.identity()
    put("model", "transformers", "max_batch_size", to=3)(case)
    assert case.identity() == before


UNKNOWN: dict[str, Any] = {
    "code_revision": "main",
    "compilation_config.backend": "my.module.compile",
    "compilation_config.inductor_passes": {"post_grad_custom_post_pass": "my.module.Pass"},
    "default_mm_loras": {"audio": "org/lora"},
    "distributed_executor_backend": "my.module.Executor",
    "ec_manager_config.encoder_cache_manager_cls": "my.module.Manager",
    "ec_transfer_config": {"ec_connector": "X"},
    "generation_config": "org/other",
    "hf_config_path": "org/other",
    "io_processor_plugin": "mine",
    "kv_offloading_backend": "lmcache",
    "kv_transfer_config": {"kv_connector": "X"},
    "logits_processors": ["my.module:Processor"],
    "model_class_overrides": {"LlamaForCausalLM": "my.module:Llama"},
    "model_loader_extra_config": {"qlora_adapter_name_or_path": "org/adapter"},
    "model_weights": "s3://bucket/weights",
    "reasoning_parser_plugin": "mine",
    "scheduler_cls": "my.module.Scheduler",
    "spec_model": "org/draft",
    "speculative_config": {"model": "org/draft", "num_speculative_tokens": 2},
    "structured_outputs_config.reasoning_parser_plugin": "mine",
    "tokenizer": "org/other",
    "tokenizer_revision": "main",
    "weight_transfer_config": {"backend": "nccl"},
    "worker_cls": "my.module.Worker",
    "worker_extension_cls": "my.module.Extension",
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_may_change_under_the_same_name_is_not_reused(case: Case, name: str) -> None:
    put("model", "vllm", *name.split("."), to=UNKNOWN[name])(case)
    with pytest.raises(NoReuseError, match=f"model.vllm.{name}"):
        case.identity()


def test_the_list_of_those_arguments_is_complete_and_vllms_own() -> None:
    assert set(UNKNOWN) == loader._NAMES_OTHER_CONTENT
    known = argument_names()
    assert not known or {name.partition(".")[0] for name in UNKNOWN} <= known


def test_what_is_known_exactly_is_reused(case: Case, tmp_path: Path) -> None:
    place = tmp_path / "tokenizer"
    place.mkdir()
    (place / "tokenizer.json").write_text("{}")
    before = case.identity()
    case.document["model"]["vllm"] |= {
        "tokenizer": str(place),
        "tokenizer_revision": "b" * 40,
        "generation_config": "vllm",
        "worker_cls": "auto",
        "logits_processors": [],
        "worker_extension_cls": "",
        "model_loader_extra_config": {"enable_multithread_load": True, "num_threads": 2},
        "compilation_config": {"mode": 3, "backend": "inductor"},
        "speculative_config": {"model": str(case.adapter), "method": "eagle"},
    }
    named = case.identity()
    assert named != before
    (place / "tokenizer.json").write_text("[]")
    assert case.identity() != named


@pytest.mark.parametrize(
    ("name", "beside"),
    [
        ("logits_processors", ["my.module:X"]),
        ("default_mm_loras", {"audio": "org/lora"}),
        ("kv_transfer_config", {"kv_connector": "X"}),
        ("speculative_config", {"model": "org/draft"}),
        ("distributed_executor_backend", {"odd": "thing"}),
    ],
)
def test_one_local_path_does_not_vouch_for_what_stands_beside_it(
    case: Case, name: str, beside: Any
) -> None:
    path = str(case.adapter)
    given = [path, *beside] if isinstance(beside, list) else {"image": path, **beside}
    case.document["model"]["vllm"][name] = given
    with pytest.raises(NoReuseError, match=name):
        case.identity()


@pytest.mark.parametrize("block", ["source", "transformers", "vllm"])
def test_code_that_comes_with_the_weights_has_no_revision(case: Case, block: str) -> None:
    put("model", block, "trust_remote_code", to=True)(case)
    with pytest.raises(NoReuseError, match="code that comes with the weights"):
        case.identity()


def test_a_folder_that_the_engine_only_may_read_is_not_read_for_the_key(
    case: Case, tmp_path: Path
) -> None:
    media = tmp_path / "media"
    media.mkdir()
    case.document["model"]["vllm"]["allowed_local_media_path"] = str(media)
    before = case.identity()
    (media / "a.png").write_bytes(b"picture")
    assert case.identity() == before
