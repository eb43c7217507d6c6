"""The template library: the YAML files that ship, and those that users add.

Its folders, the first of which wins where two have a file of one name: those of
`MLOC_TEMPLATES_PATH`, then `templates/` of `MLOC_HOME`, where `mloc templates add` writes, then the
one that ships, or that of `MLOC_TEMPLATES_DIR` in its place.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from mloc_dagster.errors import InputError, UnknownNameError
from mloc_dagster.settings import settings

_PACKAGE = Path(__file__).parent


def library_dir() -> Path:
    """Returns the folder of what ships: the configured one, the package's, or the checkout's.

    Raises:
        InputError: If `MLOC_TEMPLATES_DIR` names no folder.
    """
    configured = settings().templates_dir
    if configured is not None:
        return _folder(configured, "MLOC_TEMPLATES_DIR")
    packaged = _PACKAGE / "templates"
    return packaged if packaged.is_dir() else _PACKAGE.parent / "templates"


def added_dir() -> Path:
    """Returns the folder of templates that were added here; it may not exist."""
    return settings().home / "templates"


def library_dirs() -> Sequence[Path]:
    """Returns the library's folders, in order of precedence.

    Raises:
        InputError: If a setting names no folder.
    """
    path = [Path(each).expanduser() for each in settings().templates_path.split(os.pathsep) if each]
    added = [added_dir()] if added_dir().is_dir() else []
    return [*(_folder(each, "MLOC_TEMPLATES_PATH") for each in path), *added, library_dir()]


def _folder(path: Path, setting: str) -> Path:
    if not path.is_dir():
        raise InputError(f"{setting} has {str(path)!r}, which is no folder")
    return path


def library_files() -> dict[str, Path]:
    """Returns the library's files by name, such as `core/echo`; of each folder in order of name."""
    found: dict[str, Path] = {}
    for root in library_dirs():
        for path in sorted({*root.rglob("*.yaml"), *root.rglob("*.yml")}):
            found.setdefault(path.relative_to(root).with_suffix("").as_posix(), path)
    return found


def library_fingerprint() -> tuple[tuple[str, int, int], ...]:
    """Returns what changes when a file of the library does: names, times and sizes."""
    stats = [(str(path), path.stat()) for path in library_files().values()]
    return tuple((name, stat.st_mtime_ns, stat.st_size) for name, stat in stats)


def library_prompt(names: Sequence[str]) -> str:
    """Returns a text of the library's `prompts/`, made of files, each a paragraph or more.

    Args:
        names: The files, such as `answer/base` for `prompts/answer/base.md`.

    Raises:
        UnknownNameError: If the library has no such file.
    """
    return "\n\n".join(map(_prompt, names))


def _prompt(name: str) -> str:
    folders = [root / "prompts" for root in library_dirs()]
    for folder in folders:
        path = folder / f"{name}.md"
        if path.is_file():
            return path.read_text(encoding="utf-8").strip()
    known = {
        path.relative_to(folder).with_suffix("").as_posix()
        for folder in folders
        for path in folder.rglob("*.md")
    }
    raise UnknownNameError("prompt", name, known)


def library_file(name: str) -> Path:
    """Returns the file of a library template, by its name or by the last part of it.

    Raises:
        UnknownNameError: If the library has no template of that name.
    """
    files = library_files()
    for known, path in files.items():
        if name in (known, known.rpartition("/")[2]):
            return path
    known = files if "/" in name else [each.rpartition("/")[2] for each in files]
    raise UnknownNameError("template", name, known)
