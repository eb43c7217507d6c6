"""LoRA adapters as folders or archives, and the archives themselves."""

from __future__ import annotations

import importlib.util
import json
import shutil
import stat
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from gzip import GzipFile
from pathlib import Path, PurePosixPath
from typing import IO, Any
from urllib.parse import urlsplit

from mloc_dagster.errors import InputError, MissingExtraError
from mloc_dagster.executors.training.weight_files import weights_kind
from mloc_dagster.net import current_reach, download
from mloc_dagster.results import BUFFER_BYTES, Folder
from mloc_dagster.schema import Adapter

SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz")
"""What `unpack` reads."""

WRITTEN = (".zip", ".tar.gz", ".tgz")
"""What `archive_folder` writes."""

_ZIP_EPOCH = (1980, 1, 1, 0, 0, 0)
# Weights hardly get smaller, and each level above costs minutes for a large model.
_GZIP_LEVEL = 1
_UNSOUND = (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, NotImplementedError)


def archive_folder(task: Folder, name: str, target: str) -> str:
    """Packs a folder of a task's results into an archive beside it.

    The archive appears whole. Its bytes depend on the names and contents of the files alone; they
    are at the top of it.

    Args:
        task: The task's folder.
        name: The folder in it, such as `final_model`.
        target: The archive's name below the task's folder. `.zip` stores files as they are,
            `.tar.gz` and `.tgz` compress them a little.

    Returns:
        The archive's name.

    Raises:
        InputError: If the folder holds no file, or the name says of no kind that is written.
    """
    if not target.endswith(WRITTEN):
        raise InputError(f"{target!r} names no archive: expected one of {', '.join(WRITTEN)}")
    names = task.list(name, recursive=True)
    if not names:
        raise InputError(f"{task.url}/{name} holds no file: nothing to put into an archive")
    with task.create(target) as file:
        (_write_zip if target.endswith(".zip") else _write_tar)(task, name, names, _Forward(file))
    return target


def unpack(path: Path, target: Path, place: str) -> None:
    """Unpacks an archive that somebody else may have made.

    Args:
        path: The archive; its suffix says what it is, see `SUFFIXES`.
        target: The folder to unpack into; what is there after an error is to be thrown away.
        place: What the user calls it, for messages.

    Raises:
        InputError: If it is damaged, larger than the disk has room for, or holds a link, a device,
            or a name that leads out of the folder.
    """
    target.mkdir(parents=True, exist_ok=True)
    try:
        if path.suffix == ".zip":
            _unpack_zip(path, target, place)
        else:
            _unpack_tar(path, target, place)
    except _UNSOUND as error:
        raise InputError(f"{place!r} is not a sound archive: {error}") from error


class _Forward:
    """Cannot seek, so that archives are the same on stores where files can and where not."""

    def __init__(self, file: IO[bytes]) -> None:
        self.write = file.write
        self.flush = file.flush


def _write_zip(task: Folder, folder: str, names: list[str], file: _Forward) -> None:
    with zipfile.ZipFile(file, "w") as packed:  # pyright: ignore[reportArgumentType, reportCallIssue]
        for name in names:
            entry = zipfile.ZipInfo(name.removeprefix(f"{folder}/"), _ZIP_EPOCH)
            entry.external_attr = (stat.S_IFREG | 0o644) << 16
            entry.create_system = 3  # Unix, whose file modes these are
            entry.file_size = task.size(name)
            with task.open(name) as source, packed.open(entry, "w") as target:
                shutil.copyfileobj(source, target, BUFFER_BYTES)


def _write_tar(task: Folder, folder: str, names: list[str], file: _Forward) -> None:
    with (
        closing(GzipFile("", "wb", _GZIP_LEVEL, file, mtime=0)) as compressed,  # pyright: ignore[reportArgumentType]
        tarfile.open(mode="w", fileobj=compressed, format=tarfile.PAX_FORMAT) as packed,
    ):
        for name in names:
            entry = tarfile.TarInfo(name.removeprefix(f"{folder}/"))
            entry.size = task.size(name)
            with task.open(name) as source:
                packed.addfile(entry, source)


def _unpack_zip(path: Path, target: Path, place: str) -> None:
    with zipfile.ZipFile(path) as packed:
        members = packed.infolist()
        _check_room(sum(each.file_size for each in members), target, place)
        for each in members:
            mode = each.external_attr >> 16
            _check_member(each.orig_filename, not stat.S_ISLNK(mode), place)
        packed.extractall(target)  # noqa: S202  all members were looked at


def _unpack_tar(path: Path, target: Path, place: str) -> None:
    with tarfile.open(path) as packed:
        # One by one: to list a compressed archive first would mean to decompress it twice.
        for each in packed:
            _check_member(each.name, each.isfile() or each.isdir(), place)
            _check_room(each.size, target, place)
            packed.extract(each, target, filter="data")


def _check_member(name: str, plain: bool, place: str) -> None:
    path = PurePosixPath(name.replace("\\", "/"))
    if not plain:
        raise InputError(f"{place!r} holds {name!r}, which is neither a file nor a folder")
    if path.is_absolute() or ".." in path.parts or "\0" in name:
        raise InputError(f"{place!r} holds {name!r}, which leads out of the archive")


def _check_room(size: int, target: Path, place: str) -> None:
    free = shutil.disk_usage(target).free
    if size > free:
        raise InputError(f"{place!r} unpacks to {size:,} bytes: the disk has {free:,} free")


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
