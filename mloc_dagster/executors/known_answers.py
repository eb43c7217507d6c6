"""Answers of earlier tasks, for a template that asks for them with `spec.reuse`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from mloc_dagster.errors import MlocError
from mloc_dagster.executors.engines.protocol import Engine
from mloc_dagster.executors.reuse_identity import (
    NoReuseError,
    files_unchanged,
    model_identity,
)
from mloc_dagster.results.row_cache import CACHE_FOLDER, RowCache
from mloc_dagster.results.store import open_store
from mloc_dagster.schema.task import ModelSpec
from mloc_dagster.settings import settings


@dataclass(frozen=True, slots=True)
class EarlierAnswers:
    """Where answers of earlier tasks are, and what tells whose they are.

    Attributes:
        identity: Digest of what answers.
        rows: Its cache; None when there is none.
    """

    identity: bytes = b""
    rows: RowCache | None = None


@contextmanager
def earlier_answers(
    spec: ModelSpec, engine: Engine, log: Callable[[str], None]
) -> Iterator[EarlierAnswers]:
    """Lends the cache of a task's model; what it was given is on the store when the block ends.

    Args:
        spec: The task.
        engine: What answers it.
        log: Hears why there is no reuse, when it was asked for.
    """
    if not spec.reuse:
        yield EarlierAnswers()
        return
    try:
        identity = model_identity(spec, engine)
    except (NoReuseError, MlocError, OSError) as reason:
        log(f"reuse: off: {reason}")
        yield EarlierAnswers()
        return
    cache = RowCache(
        open_store().folder(CACHE_FOLDER),
        identity.hex()[:32],
        log,
        limit_bytes=settings().row_cache_bytes,
        # An engine that broke down reads its files once more when it starts again.
        valid=lambda: files_unchanged(spec, engine),
    )
    try:
        yield EarlierAnswers(identity, cache)
    finally:
        cache.close()
