"""Names of files that cannot leave a task's folder, nor pretend to be another one."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

from mloc_dagster.api.problems import Refusal
from mloc_dagster.errors import InputError
from mloc_dagster.results.store import Folder, check_name, check_task_id

MAX_NAME_BYTES = 1_000
_MAX_PART_BYTES = 240

# Control and format characters, private use, halves of pairs, line and paragraph separators: what
# shows as nothing, turns the text around, or is no character at all.
_REFUSED_CATEGORIES = frozenset({"Cc", "Cf", "Co", "Cs", "Cn", "Zl", "Zp"})


def safe_name(name: str) -> str:
    """Returns a file's name below a task's folder.

    Raises:
        Refusal: 422, if it could mean something outside, or something else than it shows.
    """
    why = _why_unsafe(name)
    if why is None:
        try:
            return check_name(name)
        except InputError as error:
            why = str(error)
    raise Refusal(422, "invalid-name", why)


def _why_unsafe(name: str) -> str | None:
    shown = ascii(name[:200])
    if not name or name.endswith("/"):
        return f"{shown} is no name of a file"
    if any(unicodedata.category(each) in _REFUSED_CATEGORIES for each in name):
        return f"{shown} has a character that does not show"
    parts = name.split("/")
    if len(name.encode()) > MAX_NAME_BYTES or any(
        len(each.encode()) > _MAX_PART_BYTES for each in parts
    ):
        return (
            f"{shown} is too long: at most {MAX_NAME_BYTES} bytes, and {_MAX_PART_BYTES} between "
            "slashes"
        )
    if unicodedata.normalize("NFC", name) != name:
        return f"{shown} is not in Unicode's composed form (NFC), and would be two names"
    for each in parts:
        plain = unicodedata.normalize("NFKC", each)
        if plain != each and (set(plain) & set("/\\") or not plain.strip(". ")):
            return f"{shown} looks like another path: some of its characters stand for '.' or '/'"
        if each != each.strip() or (each and not each.strip(".")):
            return f"{shown} has a part that begins or ends with a space, or is only dots"
    return None


def safe_task_id(task_id: str) -> str:
    """Returns a task's id; raises a 404 `Refusal` for what can be none."""
    try:
        return check_task_id(task_id)
    except InputError as error:
        raise Refusal(404, "unknown-task", str(error)) from None


def inside(folder: Folder, name: str) -> bool:
    """Tells whether a file of a local store really lies in it, links followed."""
    if "://" in folder.store.url:
        return True
    root = os.path.realpath(folder.store.url)
    found = os.path.realpath(Path(folder.url, name))
    return found.startswith(root.rstrip("/") + "/")
