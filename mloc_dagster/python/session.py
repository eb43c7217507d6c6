"""What runs of one program share: Dagster's instance, and models that stay loaded."""

from __future__ import annotations

import threading
from contextlib import ExitStack
from contextvars import Context, ContextVar, Token, copy_context
from types import TracebackType
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    import dagster as dg

    from mloc_dagster.executors import ModelCache

_current: ContextVar[Session | None] = ContextVar("session", default=None)


class Session:
    """Keeps models loaded, and the database open, from one call to the next.

    As a context manager it holds for all calls in its block. Without one, as in a notebook whose
    cells share it, name it in each call: `mloc.run(…, session=session)`. Thread-safe.

    Args:
        max_models: Models that stay loaded at most; by default as many as `MLOC_MAX_CACHED_MODELS`
            and `MLOC_CACHE_BYTES` allow.
    """

    def __init__(self, *, max_models: int | None = None) -> None:
        if max_models is not None and max_models < 1:
            raise ValueError(f"max_models must be at least 1, not {max_models}")
        self._max_models = max_models
        self._lock = threading.Lock()
        self._open = ExitStack()
        # An instance that is entered becomes the current one of its context. Sessions end in any
        # order: each has a context of its own, and none makes an ended one's current again.
        self._context: Context | None = None
        self._instance: dg.DagsterInstance | None = None
        self._models: ModelCache | None = None
        self._tokens: list[Token[Session | None]] = []

    def __enter__(self) -> Self:
        self._tokens.append(_current.set(self))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Frees the models, and closes the database."""
        _current.reset(self._tokens.pop())
        self.close()

    def close(self) -> None:
        """Frees the models, and closes the database; the next call opens them anew."""
        with self._lock:
            models, self._models = self._models, None
            self._instance = None
            opened, self._open = self._open, ExitStack()
            context, self._context = self._context, None
        if models is not None:
            models.clear()
        if context is not None:
            context.run(opened.close)

    def instance(self) -> dg.DagsterInstance:
        """Returns Dagster's instance, that of `mloc run`; opens it the first time."""
        from mloc_dagster.services import open_instance

        with self._lock:
            if self._instance is None:
                instance = open_instance(in_threads=True)
                self._context = copy_context()
                self._instance = self._context.run(self._open.enter_context, instance)
            return self._instance

    def models(self) -> ModelCache:
        """Returns the models that are loaded."""
        from mloc_dagster.fleet import new_model_cache

        with self._lock:
            if self._models is None:
                self._models = new_model_cache(self._max_models)
            return self._models


def current_session() -> Session | None:
    """Returns the session of the block in which this is called; None outside of any."""
    return _current.get()
