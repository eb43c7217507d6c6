"""A template's run in a thread of its own, so that a caller's event loop and Ctrl-C stay theirs."""

from __future__ import annotations

import threading
import uuid
import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING

from mloc_dagster.compile import CompiledTemplate, Diagnostic
from mloc_dagster.data import RowsFile
from mloc_dagster.errors import InputError, UnknownNameError
from mloc_dagster.events import TaskEvent, listening
from mloc_dagster.python.errors import RunInterrupted, TaskFailedError, TemplateWarning
from mloc_dagster.python.session import Session, current_session
from mloc_dagster.python.task_result import Result, results_of
from mloc_dagster.results import Folder, open_store, results_at

if TYPE_CHECKING:
    from mloc_dagster.local_run import RunOutcome, TaskOutcome

_running: ContextVar[bool] = ContextVar("running", default=False)

_HERE = str(Path(__file__).parents[1])
"""A warning names the caller's line, and none of this package."""


_BETA_MARK = "Parameter `data_version` of initializer"


def refuse_nested() -> None:
    """Makes sure that a run is not asked for from within another one.

    Raises:
        InputError: If it is: the outer one would wait for the inner one, with its model loaded.
    """
    if _running.get():
        raise InputError(
            "mloc runs no task from within another one, such as from its progress callback: start "
            "it when the first has ended, or from another thread"
        )


class Execution:
    """One run of a template.

    Args:
        compiled: The template.
        session: What it shares with other runs; None to have all for itself.
        results: Address of the store for its results.
        shown_results: How the caller calls that; None if it did not say.
        workflow_id: Goes on with this workflow.
        retry_errors: Whether rows that ended with an error are computed again.
        accept_changed_model: Whether another model may go on than the one that began.
        hear: Hears each event of this run, in the run's thread. What it raises stops the run.
        rows_file: A file with rows of the caller's: it goes once it is not needed any more.

    Attributes:
        workflow_id: What goes on with it.
        compiled: The template.
    """

    def __init__(
        self,
        compiled: CompiledTemplate,
        *,
        session: Session | None,
        results: str,
        shown_results: str | None = None,
        workflow_id: str | None = None,
        retry_errors: bool = False,
        accept_changed_model: bool = False,
        hear: Callable[[TaskEvent], None] = lambda _: None,
        rows_file: RowsFile | None = None,
    ) -> None:
        self.compiled = compiled
        self._run_id = str(uuid.uuid4())
        self.workflow_id = workflow_id or self._run_id
        self._goes_on = workflow_id is not None
        shared = session or current_session()
        self._session = shared or Session()
        self._owns_session = shared is None
        self._results = results
        self._shown_results = shown_results
        self._retry_errors = retry_errors
        self._accept_changed_model = accept_changed_model
        self._hear = hear
        self._rows_file = rows_file
        self._on_end: list[Callable[[], None]] = []
        self._stop = threading.Event()
        self._ended = threading.Event()
        self._outcome: RunOutcome | None = None
        self._misfits: Sequence[Diagnostic] = ()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="mloc-run", daemon=True)

    def call_at_end(self, function: Callable[[], None]) -> None:
        """Has a function called in the run's thread at its end; to be asked before it starts."""
        self._on_end.append(function)

    def folder_of(self, node: str | None = None) -> Folder:
        """Returns the folder of a task, which need not be there yet.

        Args:
            node: Its stage or node; by default the last.

        Raises:
            UnknownNameError: If there is no such task.
        """
        from mloc_dagster.executors import task_id_for

        names = [each.task.name for each in self.compiled.tasks]
        if node is not None and node not in names:
            raise UnknownNameError("task", node, names)
        task_id = task_id_for(self.workflow_id, self.compiled, node or names[-1])
        return open_store(self._results).task(task_id)

    def start(self) -> None:
        """Begins."""
        self._warn(self.compiled.warnings)
        self._thread.start()

    def stop(self) -> None:
        """Asks it to end; rows that are finished are kept."""
        self._stop.set()

    @property
    def ended(self) -> bool:
        """Whether it has ended."""
        return self._ended.is_set()

    def join(self) -> None:
        """Waits for its end."""
        # Not for the thread: CPython 3.12 takes it for ended once Ctrl-C has broken a `join`.
        self._ended.wait()

    def wait(self, on_stopping: Callable[[], None]) -> None:
        """Waits for its end; Ctrl-C stops it, and a second one stops the waiting.

        Args:
            on_stopping: Called when the first Ctrl-C has come.

        Raises:
            RunInterrupted: If one has come.
        """
        try:
            self.join()
        except KeyboardInterrupt:
            self.stop()
            on_stopping()
            with suppress(KeyboardInterrupt):  # the thread ends by itself, later
                self.join()
            raise RunInterrupted(self.workflow_id, self.resume_call()) from None

    def result(self) -> Result:
        """Returns what came of it, once it has ended.

        Raises:
            TaskFailedError: If a task failed.
            Exception: Whatever kept it from starting.
        """
        if self._error is not None:
            raise self._error
        outcome = self._outcome
        if outcome is None:
            raise AssertionError("it has not ended")
        self._warn(self._misfits)
        store = open_store(self._results)
        results = results_of([store.task(each.task_id) for each in outcome.tasks])
        found = results[-1] if results else None
        if outcome.succeeded and found is not None:
            return found
        raise self._failure(outcome, found)

    def resume_call(self, outcome: RunOutcome | None = None) -> str:
        """Returns the call that goes on with it."""
        words = [f'resume="{self.workflow_id}"']
        summaries = [] if outcome is None else [each.summary for each in outcome.tasks]
        if any(each is not None and not each.ok for each in summaries):
            words.append("retry_errors=True")
        if self._shown_results is not None:
            words.append(f'results="{self._shown_results}"')
        return f"mloc.run({', '.join(words)})"

    def _warn(self, findings: Sequence[Diagnostic]) -> None:
        for each in findings:
            warnings.warn(str(each), TemplateWarning, skip_file_prefixes=(_HERE,))

    def _failure(self, outcome: RunOutcome, found: Result | None) -> TaskFailedError:
        lines = outcome.problems(self.compiled.metadata.name)
        if outcome.can_go_on:
            lines.append(f"finished rows are kept; go on with: {self.resume_call(outcome)}")
        return TaskFailedError(
            "\n".join(lines),
            task_id=_failed_task(outcome.tasks, self.workflow_id),
            workflow_id=self.workflow_id,
            failures=outcome.failures,
            bad_input=outcome.bad_input,
            result=found if found is not None and found.has_rows else None,
        )

    def _run(self) -> None:
        try:
            with ExitStack() as stack:
                if self._owns_session:
                    stack.callback(self._session.close)
                self._execute()
        except BaseException as error:  # noqa: BLE001 - it is raised in the caller's thread
            self._error = error
        finally:
            self._drop_rows()
            self._ended.set()
            for each in self._on_end:
                each()

    def _execute(self) -> None:
        _running.set(True)
        # Dagster's own beta mark on an argument of mloc's, which no caller can mend.
        warnings.filterwarnings("ignore", _BETA_MARK)
        with listening(self._heard), results_at(self._results):
            from mloc_dagster.executors import cancellable
            from mloc_dagster.fleet import models_in
            from mloc_dagster.local_run import (
                check_runnable,
                close_dead_runs,
                misfits,
                run_template,
                wait_asleep,
            )
            from mloc_dagster.ops import (
                PROCESS_TAG,
                WORKFLOW_TAG,
                launched_with,
                this_process,
            )

            wait_asleep()  # of use if nobody has imported PyTorch yet
            check_runnable(self.compiled)
            instance = self._session.instance()
            if self._goes_on:
                close_dead_runs(instance, WORKFLOW_TAG, self.workflow_id)
            self._misfits = misfits(self.compiled)
            with cancellable(self._stop.is_set), models_in(self._session.models()):
                self._outcome = run_template(
                    self.compiled,
                    instance,
                    workflow_id=self.workflow_id,
                    retry_errors=self._retry_errors,
                    accept_changed_model=self._accept_changed_model,
                    run_id=self._run_id,
                    tags={PROCESS_TAG: this_process(), **launched_with("mloc.run")},
                )
            if self._stop.is_set() and not self._outcome.succeeded:
                run = instance.get_run_by_id(self._run_id)
                if run is not None:  # Dagster says that it failed
                    instance.report_run_canceled(run, "Stopped by its caller.")

    def _drop_rows(self) -> None:
        """Deletes the caller's rows, unless a resume has still to read them."""
        if self._rows_file is None:
            return
        first = self.folder_of(self.compiled.tasks[0].task.name)
        goes_on = self._outcome is not None and not self._outcome.bad_input
        if first.exists("plan.json") or not goes_on:
            self._rows_file.delete()

    def _heard(self, event: TaskEvent) -> None:
        if event.run_id != self._run_id or self._error is not None:
            return
        try:
            self._hear(event)
        except Exception as error:  # noqa: BLE001 - it is the caller's, and raised there
            self._error = error
            self.stop()


def _failed_task(tasks: Sequence[TaskOutcome], workflow_id: str) -> str:
    undone = [each for each in tasks if each.summary is None and each.training is None]
    failed = undone or [each for each in tasks if each.summary is not None and not each.summary.ok]
    return (failed or list(tasks))[0].task_id if tasks else workflow_id
