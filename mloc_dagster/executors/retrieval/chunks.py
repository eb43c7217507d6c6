"""The task type `chunk`: each row is a document, which becomes its text and chunks of it."""

from __future__ import annotations

import time
from functools import cache, partial
from importlib.metadata import version

from mloc_dagster.errors import DataError, TaskCancelled
from mloc_dagster.executors.base import SECONDS_PER_LOOK, ModelKey, ShardContext, ShardInput
from mloc_dagster.executors.prompts import last_user_text
from mloc_dagster.executors.retrieval.chunking import Chunker
from mloc_dagster.executors.retrieval.parsing import parse_document
from mloc_dagster.results import InputRow, OutputRow, failed_row
from mloc_dagster.schema import ChunkSpec


class ChunkExecutor:
    """Parses and cuts documents, one after the other."""

    def model_key(self, spec: ChunkSpec) -> ModelKey | None:
        """Returns None: a tokenizer is too light to take a model's place in memory."""
        return None

    def load(self, spec: ChunkSpec) -> Chunker:
        """Loads the tokenizer.

        Raises:
            MissingExtraError: If a library is not installed.
            TerminalError: If the tokenizer's model does not exist.
            TransientError: If the hub cannot be reached.
        """
        return Chunker(spec.chunk)

    def unload(self, model: Chunker) -> None:
        """Frees nothing."""

    def revision(self, model: Chunker) -> str:
        """Returns which tokens are counted."""
        return model.revision

    def run(
        self, shard: ShardInput, spec: ChunkSpec, model: Chunker, context: ShardContext
    ) -> None:
        """Cuts every document of a shard.

        Raises:
            TaskCancelled: If the task was asked to stop.
        """
        looked = 0.0
        for done, row in enumerate(shard.rows):
            if time.monotonic() - looked > SECONDS_PER_LOOK:
                if context.cancelled():
                    raise TaskCancelled(f"stopped after {done} documents")
                looked = time.monotonic()
            context.emit(_cut(row, model, shard))


def _cut(row: InputRow, chunker: Chunker, shard: ShardInput) -> OutputRow:
    if row.error is not None:
        return failed_row(row, row.error, _engine())
    began = time.monotonic()
    try:
        parsed = parse_document(
            row.media_type, last_user_text(row.prompt), partial(shard.open_file, row.file)
        )
    except DataError as error:
        return failed_row(row, str(error), _engine())
    chunks = chunker.cut(row.custom_id or str(row.index), parsed, row.payload)
    seconds = time.monotonic() - began
    return OutputRow(
        index=row.index,
        prompt=row.prompt,
        output=parsed.text,
        latency_s=seconds,
        engine=_engine(),
        engine_s=seconds,
        custom_id=row.custom_id,
        chunks=chunks,
    )


@cache
def _engine() -> str:
    return f"semantic-text-splitter {version('semantic-text-splitter')}"
