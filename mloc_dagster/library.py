"""The template library: the YAML files that ship, or those of `MLOC_TEMPLATES_DIR`."""

from __future__ import annotations

from pathlib import Path

from mloc_dagster.errors import InputError, UnknownNameError
from mloc_dagster.settings import settings

_PACKAGE = Path(__file__).parent


def library_dir() -> Path:
    """Returns the library's folder: the configured one, the package's, or the checkout's.

    Raises:
        InputError: If `MLOC_TEMPLATES_DIR` names no folder.
    """
    configured = settings().templates_dir
    if configured is not None:
        if not configured.is_dir():
            raise InputError(f"MLOC_TEMPLATES_DIR is {str(configured)!r}, which is no folder")
        return configured
    packaged = _PACKAGE / "templates"
    return packaged if packaged.is_dir() else _PACKAGE.parent / "templates"


def library_files() -> dict[str, Path]:
    """Returns the library's files by name, such as `core/echo`, in order of name."""
    root = library_dir()
    files = sorted({*root.rglob("*.yaml"), *root.rglob("*.yml")})
    return {path.relative_to(root).with_suffix("").as_posix(): path for path in files}


def library_fingerprint() -> tuple[tuple[str, int, int], ...]:
    """Returns what changes when a file of the library does: names, times and sizes."""
    stats = [(str(path), path.stat()) for path in library_files().values()]
    return tuple((name, stat.st_mtime_ns, stat.st_size) for name, stat in stats)


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
