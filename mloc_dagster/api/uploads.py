"""Data files that come with a template, kept by content where every worker reads them."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any, cast

from mloc_dagster.api.submission_body import Upload
from mloc_dagster.net.fetch import has_content
from mloc_dagster.net.reach import UPLOADS_FOLDER
from mloc_dagster.results.files import BUFFER_BYTES
from mloc_dagster.results.store import ResultStore


def keep_uploads(store: ResultStore, uploads: Sequence[Upload]) -> dict[str, str]:
    """Stores files as `.uploads/<sha256>/<name>`; what is there already, and sound, stays.

    Returns:
        Their addresses, by the names by which a template may call them: the whole name, and the
        last part of it where only one file has that.
    """
    addresses: dict[str, str] = {}
    for each in uploads:
        addresses[each.name] = _keep(store, each)
    ends = [PurePosixPath(each.name).name for each in uploads]
    for each, end in zip(uploads, ends, strict=True):
        if ends.count(end) == 1:
            addresses.setdefault(end, addresses[each.name])
    return addresses


def _keep(store: ResultStore, upload: Upload) -> str:
    source = upload.file.file
    source.seek(0)
    digest = hashlib.file_digest(cast(Any, source), "sha256").hexdigest()
    name = PurePosixPath(upload.name).name
    folder = store.folder(f"{UPLOADS_FOLDER}/{digest}")
    if not (folder.exists(name) and has_content(folder.open(name), digest)):
        source.seek(0)
        with folder.create(name) as target:
            shutil.copyfileobj(source, target, BUFFER_BYTES)
    return f"{folder.url}/{name}"
