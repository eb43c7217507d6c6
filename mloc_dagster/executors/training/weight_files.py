"""What kind of weights a folder holds, told by its files; pickled ones are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from mloc_dagster.errors import InputError, TerminalError
from mloc_dagster.settings import settings

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
