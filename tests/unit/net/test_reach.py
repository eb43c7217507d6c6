"""What a submitted template may reach, rule by rule; a local task is not limited."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import JsonValue

from mloc_dagster.library import library_dir
from mloc_dagster.net.reach import LOCAL, OutOfReachError, Reach
from mloc_dagster.results import open_store
from mloc_dagster.schema import scalars
from mloc_dagster.settings import settings

API = Reach("api")


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that the operator has opened, one that is not, and a link from one to the other."""
    (tmp_path / "open" / "deep").mkdir(parents=True)
    (tmp_path / "closed").mkdir()
    for name in ("open/deep/a.txt", "closed/secret.txt"):
        (tmp_path / name).write_text("text")
    (tmp_path / "open" / "link.txt").symlink_to(tmp_path / "closed" / "secret.txt")
    (tmp_path / "open" / "linked").symlink_to(tmp_path / "closed")
    monkeypatch.setenv("MLOC_API_DATA_ROOTS", f"{tmp_path / 'open'}, {tmp_path / 'none'}")
    settings.cache_clear()
    return tmp_path


def test_paths_in_opened_folders_are_read(files: Path) -> None:
    for path in ("open", "open/deep/a.txt", "open/*/*.txt", "closed/../open/deep/a.txt"):
        API.check_place(f"{files}/{path}")
        API.check_place(f"file://{files}/{path}")


@pytest.mark.parametrize(
    "path", ["closed/secret.txt", "open/../closed/secret.txt", "open/link.txt", "open/linked/*", ""]
)
def test_other_paths_are_refused_with_the_setting(files: Path, path: str) -> None:
    for place in (f"{files}/{path}", f"file://{files}/{path}", f"local://{files}/{path}"):
        with pytest.raises(OutOfReachError, match="MLOC_API_DATA_ROOTS"):
            API.check_place(place)
        LOCAL.check_place(place)


@pytest.mark.parametrize("place", ["/etc/passwd", "~/x.txt", "../x.txt", ".mloc/a.json", "/"])
def test_without_a_setting_no_path_is_read(place: str) -> None:
    with pytest.raises(OutOfReachError, match="path of the server"):
        API.check_place(place)


def test_the_library_uploads_and_results_are_read_and_mlocs_own_folders_are_not() -> None:
    store = open_store().url
    for place in (library_dir() / "data" / "a.jsonl", f"{store}/.uploads/0a/a.txt", f"{store}/t/x"):
        API.check_place(str(place))
    for place in (store, f"{store}/.submitted/a.json", f"{store}/.dagster/x", f"{store}/a/../.b/x"):
        with pytest.raises(OutOfReachError, match="path of the server"):
            API.check_place(place)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("reference://x.txt::file:///etc/passwd", "chains"),
        ("simplecache::http://169.254.169.254/x.zip", "chains"),
        ("webhdfs://127.0.0.1:9870/x.txt", "webhdfs://"),
        ("memory://x.txt", "memory://"),
        ("FTP://host/x.txt", "ftp://"),
        ("github://a:b@main/x.txt", "github://"),
        ("FILE:///etc/passwd", "path of the server"),
    ],
)
def test_only_known_protocols_are_followed(url: str, said: str) -> None:
    with pytest.raises(OutOfReachError, match=said):
        API.check_place(url)
    LOCAL.check_place(url)


@pytest.mark.parametrize("url", ["https://host/x.txt", "s3://bucket/x", "hf://datasets/a/b/c.txt"])
def test_the_usual_protocols_are(url: str) -> None:
    API.check_place(url)


def test_results_on_a_bucket_keep_their_hidden_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLOC_RESULTS_URL", "memory://results")
    settings.cache_clear()
    API.check_place("memory://results/.uploads/0a/rows.txt")
    with pytest.raises(OutOfReachError):
        API.check_place("memory://results/.submitted/0a.json")


def test_the_environment_is_the_operators(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OutOfReachError, match="MLOC_API_VARIABLES"):
        API.check_variables("Bearer ${MY_TOKEN}")
    monkeypatch.setenv("MLOC_API_VARIABLES", "MY_TOKEN,OTHER")
    settings.cache_clear()
    API.check_variables("Bearer ${MY_TOKEN}")
    for text in ("${MLOC_POSTGRES_URL}", "http://127.0.${SHLVL}.1/", "$${HOME}"):
        with pytest.raises(OutOfReachError, match="MLOC_API_VARIABLES"):
            API.check_variables(text)


def test_a_local_task_has_the_users_environment_but_not_mlocs_passwords() -> None:
    LOCAL.check_variables("${HOME} ${MY_TOKEN}")
    own = ("POSTGRES_URL", "REDIS_URL", "WORKER_POSTGRES_URL", "WORKER_REDIS_URL", "API_TOKEN")
    for name in (f"MLOC_{each}" for each in (*own, "API_TOKEN_FILE")):
        with pytest.raises(OutOfReachError, match="secret of mloc's own"):
            LOCAL.check_variables(f"Bearer ${{{name}}}")


RUNS_CODE = [
    {"reasoning_parser_plugin": "/tmp/x.py"},
    {"scheduler_cls": "results.x.mod.X"},
    {"worker_cls": "results.x.mod.X"},
    {"worker_extension_cls": "results.x.mod.X"},
    {"logits_processors": ["results.x.mod:X"]},
    {"distributed_executor_backend": "results.x.mod.X"},
    {"compilation_config": {"backend": "results.x.mod.compile"}},
    {"compilation_config": '{"backend": "results.x.mod.compile"}'},
    {"kv_transfer_config": {"kv_connector_module_path": "results.x.mod"}},
    {"hf_overrides": {"architectures": ["X"]}},
    {"load_format": "pt"},
    {"model_loader_extra_config": {"a": 1}},
    {"tokenizer_mode": "custom"},
    {"tokenizer": "/etc"},
    {"generation_config": "/etc"},
    {"allowed_local_media_path": "/"},
    {"download_dir": "/tmp"},
    {"io_processor_plugin": "x"},
    {"speculative_config": {"model": "/etc"}},
    {"hf_token": "x"},
    {"additional_config": {"x": 1}},
    {"quantization": "results.x"},
    {"nnodes": 2},
]


@pytest.mark.parametrize("arguments", RUNS_CODE)
def test_engine_arguments_that_name_code_or_files_are_the_operators(
    arguments: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = {"model": {"vllm": arguments}}
    LOCAL.check_spec(spec)  # type: ignore[arg-type]
    name = f"model.vllm.{next(iter(arguments))}"
    with pytest.raises(OutOfReachError, match=f"MLOC_API_OPTIONS={name}"):
        API.check_spec(spec)  # type: ignore[arg-type]
    monkeypatch.setenv("MLOC_API_OPTIONS", f"training.report_to, {name}")
    settings.cache_clear()
    API.check_spec(spec)  # type: ignore[arg-type]


def test_engine_arguments_that_tune_are_anybodys() -> None:
    tuned = {
        "max_model_len": 4096,
        "gpu_memory_utilization": "0.9",
        "dtype": "bfloat16",
        "enforce_eager": True,
        "limit_mm_per_prompt": {"image": 2},
        "quantization": "awq",
        "tensor_parallel_size": 2,
    }
    API.check_spec({"model": {"vllm": tuned}})


@pytest.mark.parametrize(
    "spec",
    [
        {"training": {"report_to": "wandb"}},
        {"training": {"report_to": ["none", "mlflow"]}},
        {"training": {"deepspeed": {"zero_optimization": {"offload_param": {"nvme_path": "/x"}}}}},
        {"training": {"deepspeed": {"tensorboard": {"enabled": True}}}},
        {"training": {"deepspeed": "/etc/config.json"}},
        {"training": {"chat_template_path": "/etc/passwd"}},
        {"training": {"vllm_server_base_url": "http://10.0.0.1"}},
        {"training": {"vllm_mode": "server"}},
        {"training": {"accelerator_config": "/x.json"}},
        {"training": {"generation_kwargs": {"custom_generate": "/tmp/x"}}},
        {"training": {"fsdp_config": "/etc/x.json"}},
        {"training": {"liger_kernel_config": {"x": True}}},
        {"training": {"torch_compile_backend": "results.x"}},
        {"lora": {"megatron_core": "results.x.mod", "megatron_config": {"a": 1}}},
        {"lora": {"auto_mapping": {"parent_library": "results.x.mod"}}},
        {"lora": {"init_lora_weights": "corda"}},
        {"evaluation": {"harness": {"include_path": "."}}},
        {"evaluation": {"report_to": "mlflow"}},
        {"evaluation": {"report_to": ["none", "wandb"]}},
    ],
)
def test_options_of_trainers_that_name_code_or_places_are_the_operators(
    spec: dict[str, object],
) -> None:
    LOCAL.check_spec(spec)  # type: ignore[arg-type]
    with pytest.raises(OutOfReachError, match="MLOC_API_OPTIONS="):
        API.check_spec(spec)  # type: ignore[arg-type]


def test_options_of_trainers_that_tune_are_anybodys() -> None:
    spec = {
        "training": {
            "learning_rate": "2e-5",
            "bf16": True,
            "optim": "adamw_torch",
            "lr_scheduler_type": "cosine",
            "lr_scheduler_kwargs": {"num_cycles": 2},
            "report_to": "none",
            "deepspeed": {
                "zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}
            },
            "reward_weights": [0.5, 1.0],
        },
        "lora": {"target_modules": ["q_proj", "v_proj"], "rank_pattern": {"q": 4}, "r": 8},
    }
    API.check_spec(spec)


@pytest.mark.parametrize(
    "spec",
    [
        {"data": {"url": "/etc/hosts.txt"}},
        {"data": {"dataset_name": "/etc"}},
        {"data": {"items": [[{"content": [{"image_url": {"url": "/etc/x.png"}}]}]]}},
        {"model": {"source": {"type": "local", "identifier": "/etc"}}},
        {"model": {"adapters": [{"path": "/etc/x.zip"}]}},
        {"model": {"adapters": [{"url": "simplecache::http://host/x.zip"}]}},
        {"reward_model": {"identifier": "/etc"}},
        {"checkpoint": {"load": {"path": "/etc"}}},
        {"checkpoint": {"load": {"url": "simplecache::http://host/x.zip"}}},
        {"evaluation": {"data": {"dataset_name": "/etc/x.jsonl"}}},
    ],
)
def test_every_field_that_is_read_is_checked(spec: dict[str, object]) -> None:
    LOCAL.check_spec(spec)  # type: ignore[arg-type]
    with pytest.raises(OutOfReachError, match="API"):
        API.check_spec(spec)  # type: ignore[arg-type]


def test_a_hub_id_that_is_a_folder_here_is_a_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec: JsonValue = {"model": {"source": {"type": "huggingface", "identifier": "owner/name"}}}
    API.check_spec(spec)
    (tmp_path / "owner" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OutOfReachError, match="path of the server"):
        API.check_spec(spec)


@pytest.mark.parametrize(
    "path",
    [".uploads/0a", "./.submitted", ".dagster/x", "0b53a1f0-7a0c-4d4f-9ad0-2f1d7a1f8d11-stage"],
)
def test_copies_go_to_no_folder_that_mloc_writes(path: str) -> None:
    with pytest.raises(OutOfReachError, match=r"output\.destination\.path"):
        API.check_spec({"output": {"destination": {"path": path}}})
    API.check_spec({"output": {"destination": {"path": "./runs/one"}}})


def test_scalars_come_with_their_place() -> None:
    assert list(scalars({"a": [{"b": 1}], "c": None})) == [(("a", 0, "b"), 1), (("c",), None)]
