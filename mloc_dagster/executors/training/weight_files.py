"""Weight files: which kind a folder holds, how they reach the store, the final folder.

A link takes no time and no space, and both names then mean one file: whoever changes it under one
name changes it under the other. So only files that are never written again come through here.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from mloc_dagster.errors import IncompleteResultsError, InputError, TerminalError
from mloc_dagster.results import BUFFER_BYTES, TEMPORARY_PREFIX, Folder
from mloc_dagster.schema import FINAL_LORA, FINAL_MODEL
from mloc_dagster.settings import settings


def local_path(folder: Folder) -> Path | None:
    """Returns where a folder of the store is on this machine's disks; None if it is elsewhere."""
    return Path(folder.url) if folder.url.startswith("/") else None


def put_file(source: Path, target: Folder, name: str) -> None:
    """Puts a local file on the store; it appears there whole."""
    place = local_path(target)
    if place is not None and _link(source, place / name):
        sync(place.joinpath(name).parent)
        return
    with source.open("rb") as file, target.create(name) as copy:
        shutil.copyfileobj(file, copy, BUFFER_BYTES)


def take_file(source: Folder, name: str, target: Path, sha256: str | None) -> None:
    """Brings a file of the store to this machine.

    Args:
        source: A folder of the store.
        name: The file in it.
        target: The local file; its folder is made.
        sha256: What the content must hash to; None for anything.

    Raises:
        IncompleteResultsError: If it is not there, or its content is another.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    place = local_path(source)
    try:
        if place is None or not _link(place / name, target):
            with source.open(name) as file, target.open("wb") as copy:
                shutil.copyfileobj(file, copy, BUFFER_BYTES)
    except FileNotFoundError:
        raise IncompleteResultsError(f"{source.url}/{name} does not exist any longer") from None
    found = sha256_of(target)
    if sha256 is not None and found != sha256:
        target.unlink()
        raise IncompleteResultsError(
            f"{source.url}/{name} is damaged: its sha256 is {found}, expected {sha256}"
        )


def sha256_of(path: Path) -> str:
    """Returns the hash of a local file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Has a file's content, or a folder's list of names, outlive a loss of power."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Does what `sync` does for all that lies in a folder, and for the folder."""
    for path in sorted(folder.rglob("*")):
        sync(path)
    sync(folder)


def _link(source: Path, target: Path) -> bool:
    """Tries to give a file a second name, in place of what has it; says whether that worked."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.parent / f"{TEMPORARY_PREFIX}{os.getpid()}-{secrets.token_hex(6)}"
    try:
        os.link(source, temporary)
    except FileNotFoundError:
        raise
    except OSError:  # another disk, or a file system without links: copying always works
        return False
    temporary.replace(target)
    temporary.unlink(missing_ok=True)  # replacing one name of a file by another of it does nothing
    return True


Kind = Literal["model", "adapter"]

ADAPTER_CONFIG = "adapter_config.json"
MODEL_CONFIG = "config.json"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
# Names of weights; a checkpoint's optimiser, scheduler and random states lie beside them.
_WEIGHTS = ("model", "pytorch_model", "adapter_model", "consolidated", "weights")


def find_weights(folder: Path, place: str) -> Path:
    """Returns the folder with weights that is least deep below one.

    Args:
        folder: Where to look: itself, or what an archive was unpacked to.
        place: What the user calls it, for messages.

    Raises:
        InputError: If there is none.
    """
    found = [each for name in (ADAPTER_CONFIG, MODEL_CONFIG) for each in folder.rglob(name)]
    if not found:
        raise InputError(
            f"{place!r} holds no weights: expected a folder or an archive with {MODEL_CONFIG} or "
            f"{ADAPTER_CONFIG}"
        )
    return min(found, key=lambda path: (len(path.parts), path)).parent


def weights_kind(folder: Path) -> Kind:
    """Tells whether a folder holds a model or an adapter, whose weights may be loaded.

    Raises:
        InputError: If it holds neither.
        TerminalError: If the weights are pickled, and that is not allowed.
    """
    if (folder / ADAPTER_CONFIG).is_file():
        kind: Kind = "adapter"
    elif (folder / MODEL_CONFIG).is_file():
        kind = "model"
    else:
        missing = "has no" if folder.is_dir() else "does not exist: expected"
        raise InputError(f"{str(folder)!r} {missing} {MODEL_CONFIG} or {ADAPTER_CONFIG}")
    stem = "adapter_model" if kind == "adapter" else ""
    if not refuse_pickles(folder, stem):
        raise InputError(f"{str(folder)!r} holds the settings of a {kind}, but no weights")
    return kind


def refuse_pickles(folder: Path, stem: str = "") -> bool:
    """Raises if a folder's weights are pickled and the operator has not allowed that.

    Args:
        folder: With the weights, in whichever format.
        stem: What the names of safetensors begin with.

    Returns:
        Whether there are weights, as safetensors or pickled.

    Raises:
        TerminalError: If they are pickled, and that is not allowed.
    """
    if any(folder.glob(f"{stem}*.safetensors")):
        return True
    pickles = sorted(
        each.name
        for each in folder.iterdir()
        if each.suffix in _PICKLES and each.name.startswith(_WEIGHTS)
    )
    if pickles and not settings().allow_pickle:
        raise TerminalError(
            f"{str(folder)!r} holds pickled weights ({', '.join(pickles[:3])}), which can run any "
            "code: save them as safetensors, or set MLOC_ALLOW_PICKLE=true where the worker starts "
            "if you trust who made them"
        )
    return bool(pickles)


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
