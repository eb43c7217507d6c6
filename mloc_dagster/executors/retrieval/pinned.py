"""The version of an index that a task has made, or searches: written once, beside its plan."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from mloc_dagster.results import Folder
from mloc_dagster.schema import Index, IndexState

PINNED_NAME = "index.json"
"""Its file in the task's folder."""


class PinnedVersion(BaseModel):
    """A version of an index.

    Attributes:
        engine: The index's engine.
        name: The index.
        url: Where it is, as the template says.
        version: Its number; None of a collection that mloc did not write.
        chunks: How many it has.
        content: A digest over its chunks; empty where nobody knows.
        removed: Chunks of the version before that it has no more; None of one that is searched.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    engine: str
    name: str
    url: str | None = None
    version: int | None
    chunks: int
    content: str = ""
    removed: int | None = None

    def is_of(self, index: Index) -> bool:
        """Tells whether it is a version of an index."""
        return (self.engine, self.name, self.url) == (index.engine, index.name, index.url)

    @property
    def state(self) -> IndexState:
        """What results say of it."""
        return IndexState(
            engine=self.engine, name=self.name, version=self.version, chunks=self.chunks
        )


def read_pinned(folder: Folder) -> PinnedVersion | None:
    """Returns the version that a task has made or searches; None of other tasks."""
    if not folder.exists(PINNED_NAME):
        return None
    return PinnedVersion.model_validate_json(folder.read_bytes(PINNED_NAME))


def write_pinned(folder: Folder, pinned: PinnedVersion) -> None:
    """Keeps it."""
    folder.write_bytes(PINNED_NAME, pinned.model_dump_json(indent=2).encode() + b"\n")
