"""What an address of data means, as far as its spelling tells: files, or a dataset of the hub."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".txt")
COMPRESSIONS = (".gz", ".zst")

_GLOB = re.compile(r"[*?\[]")


def names_files(url: str) -> bool:
    """Whether the address can mean nothing but files; any other may be a folder or a hub id."""
    return (
        "://" in url
        or url.startswith((".", "/", "~"))
        or is_glob(url)
        or data_suffix(url) is not None
    )


def is_glob(path: str) -> bool:
    """Whether a path stands for every file that its pattern fits."""
    return _GLOB.search(path) is not None


def data_suffix(path: str) -> str | None:
    """Returns the format's suffix without the compression's, or None if it isn't one of ours."""
    name = PurePosixPath(path.lower())
    if name.suffix in COMPRESSIONS:
        name = name.with_suffix("")
    return name.suffix if name.suffix in SUFFIXES else None


def hub_only(name: str, field: str, url: str) -> str:
    """Returns what is wrong with a field of hub datasets beside an address of files.

    Args:
        name: The field, such as `revision`.
        field: How the template calls the address.
        url: The address.
    """
    return (
        f"{name} selects within a hub dataset, but {field} {url!r} is a file; remove it "
        "(or set it to null)"
    )
