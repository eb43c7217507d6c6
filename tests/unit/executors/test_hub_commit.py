"""Models of the hub are loaded by the commit that their branch is at, and say which."""

from __future__ import annotations

import importlib
import shutil
from pathlib import Path
from typing import Any

import pytest

from mloc_dagster.executors.engines.vllm import start as vllm_start
from mloc_dagster.models import builtin_model_path
from mloc_dagster.schema import EmbeddingSpec, InferenceSpec

pytest.importorskip("transformers")

OLD, NEW = "a" * 40, "b" * 40


@pytest.fixture
def branch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Names the commit that is newest in a hub's cache of `someone/tiny`; there is no network."""
    root = tmp_path / "hub" / "models--someone--tiny"
    for commit in (OLD, NEW):
        shutil.copytree(builtin_model_path("tiny-chat"), root / "snapshots" / commit)
    (root / "refs").mkdir()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(root.parent))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    named = root / "refs" / "main"
    named.write_text(OLD)
    return named


def spec_of(task_type: str, revision: str | None = None) -> Any:
    kind = {"inference": InferenceSpec, "embedding": EmbeddingSpec}[task_type]
    source = {"identifier": "someone/tiny", "revision": revision}
    data = {"type": "list", "items": ["x"]}
    return kind.model_validate(
        {"taskType": task_type, "enforce_cpu": True, "model": {"source": source}, "data": data}
    )


@pytest.mark.parametrize(
    ("task_type", "module"),
    [("inference", "engine"), ("embedding", "pooling")],
)
@pytest.mark.parametrize(("revision", "newest"), [(None, NEW), ("main", NEW), (OLD, OLD)])
def test_an_engine_says_which_commit_it_loaded(
    branch: Path, task_type: str, module: str, revision: str | None, newest: str
) -> None:
    load_engine = importlib.import_module(
        f"mloc_dagster.executors.engines.transformers.{module}"
    ).load_engine
    branch.write_text(OLD)
    assert load_engine(spec_of(task_type, revision)).revision == OLD

    branch.write_text(NEW)
    assert load_engine(spec_of(task_type, revision)).revision == newest


def test_vllm_is_started_again_with_the_commit_that_it_had(
    branch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vllm_start, "vllm_build", lambda: "cpu")
    plan = vllm_start.plan_engine(spec_of("inference"))
    branch.write_text(NEW)

    assert plan.arguments["revision"] == OLD
    assert vllm_start.plan_engine(spec_of("inference")).arguments["revision"] == NEW
