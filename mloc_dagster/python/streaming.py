"""`mloc.stream`: the rows of a template's task, as they finish."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, AsyncIterable
from typing import Any

from mloc_dagster.data import Rows
from mloc_dagster.events import TaskEvent
from mloc_dagster.python.execution import Execution
from mloc_dagster.python.running import prepared
from mloc_dagster.python.session import Session, current_session
from mloc_dagster.python.task_result import Result
from mloc_dagster.python.templates import Changes, Template
from mloc_dagster.results import RowFollower

_LOOK_EVERY_S = 0.5
"""Rows become durable some time after the event that tells of them."""


class RowStream(AsyncIterable[dict[str, Any]]):
    """The rows of a task as they finish: each once, in the order in which they become durable.

    They have the columns that the input brought along, and no scores: these are computed when all
    rows are there, and are in `result()`. A loop that is left early stops the run; its finished
    rows are kept, and `workflow_id` goes on with it.

    Args:
        template: As for `mloc.run`, and so are the others.
        task: The stage or node whose rows are yielded; by default the last.
    """

    def __init__(
        self,
        template: Template | None,
        *,
        set: Changes | None,
        data: Rows | None,
        partition: str | None,
        results: str | os.PathLike[str] | None,
        resume: str | None,
        retry_errors: bool,
        task: str | None,
        session: Session | None,
    ) -> None:
        self._template = template
        self._set = set
        self._data = data
        self._partition = partition
        self._results = results
        self._resume = resume
        self._retry_errors = retry_errors
        self._task = task
        self._session = session or current_session()
        self._execution: Execution | None = None
        self._begun = False

    @property
    def workflow_id(self) -> str | None:
        """What `mloc.run(resume=…)` takes; None before the run has begun."""
        return None if self._execution is None else self._execution.workflow_id

    def result(self) -> Result:
        """Returns the result, once the last row was yielded.

        Raises:
            TaskFailedError: If a task failed.
            RuntimeError: If the run has not ended.
        """
        if self._execution is None or not self._execution.ended:
            raise RuntimeError("the run has not ended: read all of its rows first")
        return self._execution.result()

    def stop(self) -> None:
        """Stops the run; the rows that are finished are still yielded."""
        if self._execution is not None:
            self._execution.stop()

    def __aiter__(self) -> AsyncGenerator[dict[str, Any]]:
        # The generator is the loop's alone: asyncio closes it when the loop is left early.
        if self._begun:
            raise RuntimeError("the rows of a stream are read once")
        self._begun = True
        return self._read()

    async def _read(self) -> AsyncGenerator[dict[str, Any]]:
        loop = asyncio.get_running_loop()
        changed = asyncio.Event()

        def notice(_: TaskEvent | None = None) -> None:
            loop.call_soon_threadsafe(changed.set)

        execution = await asyncio.to_thread(
            prepared,
            self._template,
            set=self._set,
            data=self._data,
            partition=self._partition,
            results=self._results,
            resume=self._resume,
            retry_errors=self._retry_errors,
            accept_changed_model=False,
            hear=notice,
            session=self._session,
        )
        self._execution = execution
        follower = RowFollower(execution.folder_of(self._task), retry_errors=self._retry_errors)
        execution.call_at_end(notice)
        execution.start()
        try:
            while True:
                ended = execution.ended  # before looking: what is there then is all there will be
                changed.clear()
                while (table := await asyncio.to_thread(follower.take)) is not None:
                    for row in table.to_pylist():
                        yield row
                if ended:
                    break
                await _wait(changed)
            rest = await asyncio.to_thread(follower.rest)
            for row in () if rest is None else rest.to_pylist():
                yield row
        finally:
            execution.stop()
            await asyncio.to_thread(execution.join)
        execution.result()  # raises what it ended with


async def _wait(changed: asyncio.Event) -> None:
    try:
        async with asyncio.timeout(_LOOK_EVERY_S):
            await changed.wait()
    except TimeoutError:
        pass


def stream(
    template: Template | None = None,
    *,
    set: Changes | None = None,
    data: Rows | None = None,
    partition: str | None = None,
    results: str | os.PathLike[str] | None = None,
    resume: str | None = None,
    retry_errors: bool = False,
    task: str | None = None,
    session: Session | None = None,
) -> RowStream:
    """Runs a template in this process, and yields its rows as they finish.

    Args:
        template: A file, the name of a library template, YAML, a mapping, or what builds one.
        set: Values to replace, by path.
        data: Rows instead of the template's.
        partition: The partition that is computed, of a template that has any.
        results: Where the result goes; by default `MLOC_RESULTS_URL`, else `results`.
        resume: The id of a task that goes on; all of its rows are yielded.
        retry_errors: With `resume`: rows that ended with an error are computed again.
        task: The stage or node whose rows are yielded; by default the last.
        session: What it shares with other calls; by default that of the `with` block, if any.

    Returns:
        What `async for` reads; it begins when that does. Errors are those of `run`.
    """
    return RowStream(
        template, set=set, data=data, partition=partition, results=results, resume=resume,
        retry_errors=retry_errors, task=task, session=session,
    )  # fmt: skip
