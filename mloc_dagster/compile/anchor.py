"""Files named relative to their template, which works from whichever folder it is run."""

from __future__ import annotations

from pathlib import Path

from mloc_dagster.compile.tree import Path as Place
from mloc_dagster.compile.tree import Tree
from mloc_dagster.schema.markers import FileRef
from mloc_dagster.schema.template import marked_values


def anchor_files(root: Tree, folder: Path) -> Tree:
    """Makes relative paths absolute where what they name lies relative to the template.

    Args:
        root: A document.
        folder: The template's folder.
    """
    return root.replaced(anchored_files(root, folder))


def anchored_files(root: Tree, folder: Path) -> dict[Place, str]:
    """Returns the absolute path of everything that a document names relative to a folder.

    What leads nowhere from there stays as written: relative to the working folder, or a hub id.

    Args:
        root: A document.
        folder: The folder.

    Returns:
        The paths, by the places in the document that name them.
    """
    found: dict[Place, str] = {}
    for spec, each in marked_values(root.mapping()):
        if isinstance(each.marker, FileRef) and each.marker.anchored and each.value:
            path = _find(folder, str(each.value))
            if path is not None:
                found[*spec, *each.path] = path
    return found


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
