"""Files of an index that lie on the results store, wherever the index itself is."""

from __future__ import annotations

import hashlib
from typing import Literal

from mloc_dagster.results import Folder, open_store
from mloc_dagster.schema import Index


def index_folder(index: Index, kind: Literal["keywords", "model"]) -> Folder:
    """Returns the folder of an index with its keywords, or with what is known of its model.

    Indexes of the same name at two places are two.
    """
    name = index.name
    if index.url is not None:
        name += f"-{hashlib.sha256(index.url.encode()).hexdigest()[:12]}"
    return open_store().folder(f"indexes/{kind}/{index.engine}/{name}")


def delete_files(index: Index) -> None:
    """Removes all files of an index."""
    for kind in ("keywords", "model"):
        folder = index_folder(index, kind)
        for name in folder.list():
            folder.delete(name)
