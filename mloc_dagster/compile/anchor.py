"""Files named relative to their template, which works from whichever folder it is run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from mloc_dagster.compile.tree import Tree

_FILE_KEYS = frozenset(
    {
        ("data", "url"),
        ("data", "dataset_name"),
        ("image_url", "url"),
        ("harness", "include_path"),
    }
)


def anchor_files(tree: Tree, folder: Path) -> Tree:
    """Makes relative paths absolute where what they name lies relative to the template.

    A path that leads nowhere from there stays as written: relative to the working folder, or a
    hub id.

    Args:
        tree: A document.
        folder: The template's folder.
    """
    if isinstance(tree.content, dict):
        return tree.with_fields(
            {key: anchor_files(child, folder) for key, child in tree.content.items()}
        )
    if isinstance(tree.content, list):
        return replace(tree, content=[anchor_files(child, folder) for child in tree.content])
    if tree.path[-2:] not in _FILE_KEYS or not tree.text:
        return tree
    found = _find(folder, tree.text)
    return tree if found is None else replace(tree, content=found)


def _find(folder: Path, text: str) -> str | None:
    if "://" in text or text.startswith(("/", "~", "$", "data:")) or "\0" in text:
        return None
    path = folder / text
    try:
        if any(sign in text for sign in "*?["):
            return str(path) if any(folder.glob(text)) else None
        return str(path.resolve()) if path.exists() else None
    except (OSError, ValueError, NotImplementedError):  # too long, or no glob: not a path
        return None
