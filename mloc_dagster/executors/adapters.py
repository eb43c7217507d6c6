"""LoRA adapters: found as a folder or an archive, and merged into the weights."""

from __future__ import annotations

import importlib.util
import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from mloc_dagster.errors import InputError, MissingExtraError
from mloc_dagster.executors.archives import SUFFIXES, unpack
from mloc_dagster.executors.training.weight_files import weights_kind
from mloc_dagster.net.fetch import download
from mloc_dagster.net.reach import current_reach
from mloc_dagster.schema.model import Adapter

SUPPORTED = (
    "give `path` (a folder, or an archive on disk) or `url` (http or https, or any fsspec URL, "
    f"of an archive: {', '.join(SUFFIXES)})"
)


def merge_adapters(model: Any, adapters: Sequence[Adapter]) -> Any:
    """Returns the model with all adapters merged into its weights, in order.

    Raises:
        InputError: If an adapter cannot be found, or is not an adapter.
        MissingExtraError: If peft is not installed.
        TransientError: If it cannot be downloaded now.
    """
    if not adapters:
        return model
    require_peft()
    from peft import PeftModel

    for adapter in adapters:
        with adapter_folder(adapter) as folder:
            model = PeftModel.from_pretrained(model, str(folder)).merge_and_unload()
    return model


def require_peft() -> None:
    """Raises if adapters cannot be loaded here.

    Raises:
        MissingExtraError: If peft is not installed.
    """
    if not importlib.util.find_spec("peft"):
        raise MissingExtraError("a LoRA adapter", "hf")


@contextmanager
def adapter_folder(adapter: Adapter) -> Iterator[Path]:
    """Lends the folder with an adapter's `adapter_config.json`; an archive is unpacked for it.

    Raises:
        InputError: If there is no such adapter.
        TransientError: If it cannot be downloaded now.
    """
    place = adapter.path or adapter.url
    if place is None:
        raise InputError(f"model.adapters: an adapter without a place: {SUPPORTED}")
    current_reach().check_place(place)
    local = Path(place.removeprefix("file://")).expanduser()
    if local.is_dir():
        yield _find_config(local, place)
        return
    if "://" not in place and not local.is_file():
        raise InputError(f"model.adapters: {place!r} does not exist: {SUPPORTED}")
    if not urlsplit(place).path.endswith(SUFFIXES):
        raise InputError(f"model.adapters: {place!r} is no folder and no archive: {SUPPORTED}")
    with tempfile.TemporaryDirectory(prefix="mloc-adapter-") as scratch:
        archive = Path(scratch) / Path(urlsplit(place).path).name
        download(place, archive, f"model.adapters: {place!r}")
        unpacked = Path(scratch) / "unpacked"
        _unpack(archive, unpacked, place)
        yield _find_config(unpacked, place)


def _unpack(archive: Path, target: Path, place: str) -> None:
    try:
        unpack(archive, target, place)
    except InputError as error:
        raise InputError(f"model.adapters: {error}") from error


def _find_config(folder: Path, place: str) -> Path:
    found = sorted(folder.rglob("adapter_config.json"), key=lambda path: len(path.parts))
    if not found:
        raise InputError(f"model.adapters: {place!r} holds no adapter_config.json")
    weights_kind(found[0].parent)
    # PEFT then imports the module that `megatron_core` names.
    if current_reach().limited and json.loads(found[0].read_bytes()).get("megatron_config"):
        raise InputError(
            f"model.adapters: {place!r} has a megatron_config, whose code is not run for a "
            "template that came over the API"
        )
    return found[0].parent
