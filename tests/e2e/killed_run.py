"""`mloc run` in a process of its own that is killed where a test says: no wait, no chance."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from signal import SIGKILL
from typing import Any
from unittest.mock import patch

_PRELOADED = (
    *("mloc_dagster.assets.template_job", "mloc_dagster.cli.app", "mloc_dagster.local_run.run"),
    *("mloc_dagster.services.instance", "dagster_postgres", "alembic", "redis", "pandas"),
    *("pyarrow.parquet", "scipy.sparse", "sympy", "torch", "torchvision", "transformers"),
    "transformers.models.bert.modeling_bert",
)
"""What such processes import, which takes longer than all they do. Not `lancedb`: the thread that
it starts when it is imported would not be in a forked process."""


@dataclass(frozen=True, slots=True)
class KillPoint:
    """Where a process is killed.

    Attributes:
        place: A function, as `module:name` or `module:Class.name`.
        call: Which of its calls in this process, from 1.
        after: Whether the call is done first.
    """

    place: str
    call: int = 1
    after: bool = False


def run_killed(
    arguments: Sequence[str], environment: Mapping[str, str], log: Path, at: KillPoint
) -> None:
    """Runs `mloc` and returns when it was killed by SIGKILL at a point.

    The process is forked from a server that has imported the libraries, once for all tests.

    Raises:
        AssertionError: If it ended in any other way; shows what it printed.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(_PRELOADED))
    process = context.Process(
        target=_run, args=(list(arguments), dict(environment), str(log), at), daemon=True
    )
    process.start()
    process.join(600)
    ended, code = process.exitcode is not None, process.exitcode
    if not ended:
        process.kill()
        process.join()
    assert code == -SIGKILL, f"{at} was not reached ({code}):\n{log.read_text()}"


def _run(arguments: list[str], environment: dict[str, str], log: str, at: KillPoint) -> None:
    os.environ.clear()
    os.environ.update(environment)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for number in (1, 2):
        os.dup2(output, number)
    from mloc_dagster.cli import main
    from mloc_dagster.settings import settings

    settings.cache_clear()
    sys.argv = ["mloc", *arguments]
    with ExitStack() as stack:
        stack.enter_context(_killing(at))
        main()


def _killing(at: KillPoint) -> Any:
    module, _, path = at.place.partition(":")
    owner: Any = importlib.import_module(module)
    *classes, name = path.split(".")
    for each in classes:
        owner = getattr(owner, each)
    original: Callable[..., Any] = getattr(owner, name)
    calls = 0

    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls != at.call:
            return original(*args, **kwargs)
        if at.after:
            original(*args, **kwargs)
        os.kill(os.getpid(), SIGKILL)
        raise AssertionError("a process outlived SIGKILL")

    return patch.object(owner, name, call)
