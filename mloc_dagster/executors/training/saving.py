"""The final weights: a folder that plain transformers or PEFT loads."""

from __future__ import annotations

import json
import shutil
import stat
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mloc_dagster.executors.training.store_transfer import sync, sync_tree
from mloc_dagster.results.files import TEMPORARY_PREFIX
from mloc_dagster.schema.output import FINAL_LORA, FINAL_MODEL

_DTYPE = "mloc_source_dtype"
_USE_CACHE = "mloc_source_use_cache"


def remember_source(model: Any, dtype: str) -> None:
    """Notes on a model, right after it was loaded, what its files were like.

    Args:
        model: The model.
        dtype: The precision of its weights in the files, by torch's name.
    """
    setattr(model, _DTYPE, dtype)
    setattr(model, _USE_CACHE, getattr(model.config, "use_cache", None))


def save_final(
    model: Any, tokenizer: Any, folder: Path, weights: Mapping[str, Any] | None = None
) -> str:
    """Saves the weights of a finished training, with tokenizer, chat template and settings.

    An adapter is saved as `final_lora`, in the precision that it was trained in. A model is saved
    as `final_model`, in the precision of the files that it came from. The folder appears whole, in
    place of one from an earlier attempt.

    Args:
        model: What was trained.
        tokenizer: Its tokenizer.
        folder: Where `final_lora` or `final_model` goes.
        weights: The weights by name, where the model itself holds but a part of them.

    Returns:
        Which of the two it is.
    """
    name = FINAL_LORA if hasattr(model, "peft_config") else FINAL_MODEL
    folder.mkdir(parents=True, exist_ok=True)
    coming = Path(tempfile.mkdtemp(prefix=f"{TEMPORARY_PREFIX}{name}-", dir=folder))
    try:
        if name == FINAL_LORA:
            _save_adapter(model, coming, weights)
        else:
            _save_model(model, coming, weights)
        tokenizer.save_pretrained(str(coming))
        # Temporary folders are their owner's alone; this one is for whom its parent is.
        coming.chmod(stat.S_IMODE(folder.stat().st_mode))
        sync_tree(coming)
        _settle(coming, folder / name)
    finally:
        shutil.rmtree(coming, ignore_errors=True)
    return name


def _save_adapter(model: Any, target: Path, weights: Mapping[str, Any] | None) -> None:
    # DPO keeps a frozen copy as a second adapter.
    kept = "default" if "default" in model.peft_config else model.active_adapter
    # Embeddings that grew by a pad token stay out of it: the adapter fits the model as published.
    model.save_pretrained(
        str(target),
        selected_adapters=[kept],
        save_embedding_layers=False,
        state_dict=None if weights is None else dict(weights),
    )
    (target / "README.md").unlink(missing_ok=True)  # PEFT's form for a model card, not filled in


def _save_model(model: Any, target: Path, weights: Mapping[str, Any] | None) -> None:
    import torch

    dtype = getattr(torch, getattr(model, _DTYPE, "float32"))
    state = None if weights is None else dict(weights)
    if model.dtype == torch.float32:
        state = _in_precision(model.state_dict() if state is None else state, dtype)
    model.save_pretrained(str(target), state_dict=state)
    saved = target / "config.json"
    config = json.loads(saved.read_text())
    if model.dtype == torch.float32:
        config["dtype"] = str(dtype).removeprefix("torch.")
    # Gradient checkpointing turns the cache off, which would make the model slow to generate with.
    use_cache = getattr(model, _USE_CACHE, None)
    if use_cache is not None:
        config["use_cache"] = use_cache
    saved.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def _in_precision(state: dict[str, Any], dtype: Any) -> dict[str, Any]:
    """Returns the weights in another precision; those that are one tensor stay one."""
    done: dict[tuple[Any, ...], Any] = {}
    for name, tensor in state.items():
        key = (tensor.device, tensor.data_ptr(), tuple(tensor.shape), tensor.stride())
        if key not in done:
            done[key] = tensor.to("cpu", dtype) if tensor.is_floating_point() else tensor
        state[name] = done[key]
    return state


def _settle(coming: Path, target: Path) -> None:
    """Gives a finished folder its name; what had it is deleted after."""
    former = coming.with_name(f"{coming.name}-former")
    if target.exists():
        target.rename(former)
    coming.rename(target)
    sync(target.parent)
    shutil.rmtree(former, ignore_errors=True)
