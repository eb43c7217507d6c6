"""Weights handed over to a training (`checkpoint.load`), brought to a folder of this machine."""

from __future__ import annotations

import hashlib
import re
import shutil
import tempfile
from collections.abc import Callable
from os.path import normpath
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlsplit

from mloc_dagster.errors import IncompleteResultsError, InputError, TerminalError, nearest_hint
from mloc_dagster.executors.adapters import SUFFIXES, unpack
from mloc_dagster.executors.training.checkpoints import is_complete
from mloc_dagster.executors.training.weight_files import (
    find_weights,
    local_path,
    sha256_of,
    take_file,
    weights_kind,
)
from mloc_dagster.net import Fetcher, current_reach, reasons_for, save, uploaded_sha256
from mloc_dagster.results import (
    MANIFEST_NAME,
    TEMPORARY_PREFIX,
    Folder,
    ManifestEntry,
    ResultStore,
    open_store,
    read_manifest,
)
from mloc_dagster.schema import FINAL_LORA, FINAL_MODEL, CheckpointLoad
from mloc_dagster.settings import settings

FINAL_NAMES = (FINAL_MODEL, FINAL_LORA)
"""Folders of a task's results with weights, in the order in which they are looked for."""

MAX_BYTES = 1 << 40  # 500 billion parameters of two bytes: more is a mistake
_SHA256 = re.compile(r"sha256=([0-9a-f]{64})")


def locate_weights(load: CheckpointLoad, results: ResultStore, cache_dir: Path) -> Path:
    """Returns a local folder with the weights to start from: a full model, or a LoRA adapter.

    Results of earlier tasks are read where they lie, if that is on this machine, else fetched;
    they are checked against the task's manifest. What is fetched or unpacked is kept.

    Args:
        load: Where the weights are.
        results: The store of all results.
        cache_dir: Where what was fetched or unpacked is kept; local.

    Raises:
        InputError: If there are no weights, or they cannot be read.
        IncompleteResultsError: If the earlier task is not done, or its files are damaged.
        TerminalError: If the weights are pickled, or their sha256 is wrong.
        TransientError: If they cannot be had now.
    """
    if load.task_id is not None:
        place = f"{load.task_id}/{load.file or ''}".rstrip("/")
        folder = _of_task(results.task(load.task_id), load.file, cache_dir)
    else:
        place = load.path or load.url or ""
        folder = _at(place, results, cache_dir)
    found = find_weights(folder, place)
    weights_kind(found)
    return found


def fetched_model(place: str) -> Path:
    """Returns a local folder with weights that lie at an address, such as an earlier task's.

    Raises:
        MlocError: As `locate_weights`.
    """
    load = CheckpointLoad(type="local", path=place)
    return locate_weights(load, open_store(), settings().home / "weights")


def _at(place: str, results: ResultStore, cache_dir: Path) -> Path:
    current_reach().check_place(place)
    own = _name_in_store(place, results)
    if own is not None:
        task, name = own
        return _of_task(task, name, cache_dir)
    if place.startswith("file://"):
        place = unquote(urlsplit(place).path)
    if "://" in place:
        return _downloaded_archive(place, cache_dir)
    path = Path(place).expanduser()
    if path.is_dir():
        return path
    if not path.is_file():
        raise InputError(f"checkpoint.load: {place!r} does not exist")
    return _unpacked_archive(path, cache_dir, place, uploaded_sha256(str(path)))


def _name_in_store(place: str, results: ResultStore) -> tuple[Folder, str] | None:
    """Returns the task and the name in its folder, of an address inside our own results."""
    address = urldefrag(place).url
    if address.startswith("file://"):
        address = unquote(urlsplit(address).path)
    if "://" not in address:
        address = normpath(Path(address).expanduser().absolute())
    if not address.startswith(f"{results.url}/"):
        return None
    task_id, _, name = address.removeprefix(f"{results.url}/").partition("/")
    task = results.folder(task_id)
    is_task = task.exists("task.json") or task.exists(MANIFEST_NAME)
    return (task, name.rstrip("/")) if is_task and name else None


def _of_task(task: Folder, name: str | None, cache_dir: Path) -> Path:
    name = _wanted(task, name)
    place = local_path(task)
    if place is not None and is_complete(place / name):
        return place / name  # a checkpoint; its task need not be done
    files = _listed(task, name)
    if name.endswith(SUFFIXES):
        return _unpacked(task, name, files[0], cache_dir)
    if place is not None:
        _check_sizes(place, files)
        return place / name

    def fill(folder: Path) -> None:
        for file in files:
            take_file(task, file.path, folder / file.path.removeprefix(f"{name}/"), file.sha256)

    content = "\n".join(f"{file.path} {file.sha256}" for file in files)
    return _filled(_kept_folder(cache_dir, f"task {task.url}\n{content}"), fill)


def _wanted(task: Folder, name: str | None) -> str:
    """Returns which of a task's files or folders to take; of an archive the folder it is of."""
    if name is None:
        found = next((each for each in FINAL_NAMES if task.exists(each)), None)
        if found is None:
            listed = ", ".join(task.list()) or "nothing"
            raise InputError(
                f"checkpoint.load: the task {task.name!r} left no {' or '.join(FINAL_NAMES)}; "
                f"it holds {listed}"
            )
        return found
    stem = name.rsplit("/", 1)[-1]
    for suffix in SUFFIXES:
        stem = stem.removesuffix(suffix)
    # Reading the folder saves to unpack gigabytes.
    return stem if stem in FINAL_NAMES and task.exists(stem) else name


def _listed(task: Folder, name: str) -> list[ManifestEntry]:
    """Returns the manifest's entries of a file, or of all files in a folder."""
    entries = [each for each in read_manifest(task).entries if each.type == "file"]
    present = [each for each in entries if each.status == "present"]
    found = [each for each in present if each.path == name or each.path.startswith(f"{name}/")]
    if not found:
        known = {each.path.rpartition("/")[0] or each.path for each in present}
        raise InputError(
            f"checkpoint.load: the task {task.name!r} left no {name!r}{nearest_hint(name, known)}"
        )
    if found[0].path == name:
        _check_suffix(name)
    return found


def _unpacked(task: Folder, name: str, entry: ManifestEntry, cache_dir: Path) -> Path:
    place = local_path(task)
    if place is not None:
        return _unpacked_archive(place / name, cache_dir, name, entry.sha256)
    cache_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=TEMPORARY_PREFIX, dir=cache_dir) as scratch:
        archive = Path(scratch) / Path(name).name
        take_file(task, name, archive, entry.sha256)
        return _unpacked_archive(archive, cache_dir, name)


def _check_sizes(place: Path, files: list[ManifestEntry]) -> None:
    for file in files:
        path = place / file.path
        found = path.stat().st_size if path.is_file() else None
        if found != file.size:
            state = "is missing" if found is None else f"has {found:,} bytes"
            raise IncompleteResultsError(
                f"{path} {state}, but {MANIFEST_NAME} lists {file.size:,} bytes"
            )


def _kept_folder(cache_dir: Path, key: str) -> Path:
    """Returns the folder that is kept under what its content depends on. Nothing deletes it."""
    return cache_dir / hashlib.sha256(key.encode()).hexdigest()[:32]


def _filled(target: Path, fill: Callable[[Path], None]) -> Path:
    """Returns a kept folder; without it a new one is filled, and has the name when it is whole."""
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    coming = Path(tempfile.mkdtemp(prefix=TEMPORARY_PREFIX, dir=target.parent))
    try:
        fill(coming)
        try:
            coming.rename(target)
        except OSError:
            if not target.is_dir():  # else another process was quicker
                raise
    finally:
        shutil.rmtree(coming, ignore_errors=True)
    return target


def _unpacked_archive(path: Path, cache_dir: Path, place: str, sha256: str | None = None) -> Path:
    """Returns the folder that an archive on this machine is unpacked to.

    Args:
        path: The archive.
        cache_dir: Where unpacked archives are kept.
        place: What the user calls it, for messages.
        sha256: What it must hash to; None for anything.

    Raises:
        InputError: If it is no sound archive.
        TerminalError: If its sha256 is another.
    """
    _check_suffix(place)
    found = sha256_of(path)
    _check_sha256(found, sha256, place)
    target = _kept_folder(cache_dir, f"sha256 {found}")
    return _filled(target, lambda to: unpack(path, to, place))


def _downloaded_archive(url: str, cache_dir: Path) -> Path:
    """Returns the folder that an archive behind a URL is unpacked to.

    It is downloaded again only if the server says that it is another one meanwhile, or does not
    say. `#sha256=…` at the end of the URL checks the content, and spares the asking.

    Args:
        url: An http(s) or fsspec URL.
        cache_dir: Where unpacked archives are kept.

    Raises:
        InputError: If there is no such archive, or it is not a sound one.
        TerminalError: If its sha256 is another than the URL says.
        TransientError: If it cannot be had now.
    """
    address, fragment = urldefrag(url)
    said = _SHA256.fullmatch(fragment)
    _check_suffix(address)
    if said is not None and (target := _kept_folder(cache_dir, f"sha256 {said[1]}")).is_dir():
        return target
    cache_dir.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(prefix=TEMPORARY_PREFIX, dir=cache_dir) as scratch,
        reasons_for(f"checkpoint.load: {address}"),
        Fetcher() as fetcher,
        fetcher.open(address) as opened,
    ):
        versioned = said is None and opened.version
        target = _kept_folder(cache_dir, f"url {address} {opened.version}")
        if versioned and target.is_dir():
            return target
        path = Path(scratch) / Path(urlsplit(address).path).name
        found = save(opened, path, MAX_BYTES)
        _check_sha256(found, said[1] if said else None, address)
        if not versioned:
            target = _kept_folder(cache_dir, f"sha256 {found}")
        return _filled(target, lambda to: unpack(path, to, address))


def _check_suffix(place: str) -> None:
    """Raises if a path or URL does not look like an archive.

    Raises:
        InputError: With the suffixes that would have worked.
    """
    if not urlsplit(place).path.endswith(SUFFIXES):
        raise InputError(
            f"checkpoint.load: {place!r} is neither a folder nor an archive ({', '.join(SUFFIXES)})"
        )


def _check_sha256(found: str, expected: str | None, place: str) -> None:
    if expected is not None and found != expected:
        raise TerminalError(
            f"checkpoint.load: the sha256 of {place!r} is {found}, expected {expected}"
        )
