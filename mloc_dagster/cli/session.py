"""Running templates in this process for a person who watches, and what signals do meanwhile.

Dagster replaces the handlers while it runs a job: a signal then interrupts the step that runs, or
the next one, and finished rows are written on the way out. What it cannot do is stop a wait
between two attempts, or hurry; a second signal does, and so does patience that runs out.
"""

from __future__ import annotations

import os
import shlex
import signal
import sys
import threading
import uuid
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, NoReturn, Self

from rich.console import Console

from mloc_dagster.cli.display.report import TemplateRun, print_problems, print_report
from mloc_dagster.cli.terminal import BAD_INPUT, FAILED, OK, debugging, quiet_terminal
from mloc_dagster.compile import CompiledTemplate, Diagnostic
from mloc_dagster.display import Monitor, View, monitoring, view_for
from mloc_dagster.local_run import close_dead_runs
from mloc_dagster.ops import PROCESS_TAG, RESULTS_TAG, launched_with, this_process
from mloc_dagster.redaction import redact_urls
from mloc_dagster.results import open_store

if TYPE_CHECKING:
    import dagster as dg

    from mloc_dagster.local_run import RunOutcome


_SIGNALS = (signal.SIGINT, signal.SIGTERM)

PATIENCE_S = 15.0
"""A step gets this long to write its finished rows after the first signal."""


class Interrupts:
    """Notices signals while the block runs. Works in the main thread only.

    Args:
        on_first: Called from another thread when the first signal came.
        on_second: Called from another thread for the second one, or when patience has run out;
            expected to end the process with the exit code that it is given.
        patience_s: How long to wait before `on_second` is called anyway.

    Attributes:
        received: The first signal's number; None as long as there was none.
    """

    def __init__(
        self,
        on_first: Callable[[], None],
        on_second: Callable[[int], None],
        patience_s: float = PATIENCE_S,
    ) -> None:
        self.received: int | None = None
        self._on_first = on_first
        self._on_second = on_second
        self._patience_s = patience_s
        self._left = threading.Event()

    @property
    def exit_code(self) -> int:
        """What a process exits with that was ended by the signal: 130 or 143."""
        return 128 + (signal.SIGINT if self.received is None else self.received)

    def __enter__(self) -> Self:
        # The interpreter writes each signal's number here before any handler runs.
        self._read_fd, self._write_fd = os.pipe()
        os.set_blocking(self._write_fd, False)
        self._wakeup_before = signal.set_wakeup_fd(self._write_fd, warn_on_full_buffer=False)
        self._handlers_before = {each: signal.signal(each, _raise) for each in _SIGNALS}
        self._watcher = threading.Thread(target=self._watch, name="interrupts", daemon=True)
        self._watcher.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._left.set()
        for number, handler in self._handlers_before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup_before)
        os.write(self._write_fd, b"\0")
        self._watcher.join()
        os.close(self._write_fd)
        os.close(self._read_fd)

    def _watch(self) -> None:
        while True:
            for number in os.read(self._read_fd, 64):
                if number == 0:
                    return
                if number in _SIGNALS:
                    self._notice(number)

    def _notice(self, number: int) -> None:
        if self.received is not None:
            self._on_second(self.exit_code)
            return
        self.received = number
        threading.Thread(target=self._lose_patience, name="patience", daemon=True).start()
        self._on_first()

    def _lose_patience(self) -> None:
        if not self._left.wait(self._patience_s):
            self._on_second(self.exit_code)


def _raise(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


CLOSING_S = 3.0
"""How long a process that leaves at once takes for telling Dagster's database."""


class Session:
    """One `mloc run`.

    Args:
        templates: What to run.
        workflow_id: Goes on with this workflow.
        retry_errors: Whether rows that ended with an error are computed again.
        accept_changed_model: Whether another model may go on than the one that began.
        results: The `--results` that was given, for the command that resumes.
        progress: Whether to show progress.
        talkative: Whether to say anything else than what goes wrong.
        complain: Whether to say what goes wrong.
        again: The command that goes on with what was stopped; by default `mloc run --resume …`.
        report: Prints what became of a template; None for nothing.

    Attributes:
        runs: What became of the templates so far.
        warnings: What their authors should know.
    """

    def __init__(
        self,
        templates: Sequence[CompiledTemplate],
        *,
        workflow_id: str | None = None,
        retry_errors: bool = False,
        accept_changed_model: bool = False,
        results: str | None = None,
        progress: bool = True,
        talkative: bool = True,
        complain: bool = True,
        again: Sequence[str] | None = None,
        report: Callable[[TemplateRun, Console], None] | None = print_report,
    ) -> None:
        self.runs: list[TemplateRun] = []
        self.warnings: list[Diagnostic] = [
            finding for compiled in templates for finding in compiled.warnings
        ]
        self._templates = templates
        self._workflow_id = workflow_id
        self._retry_errors = retry_errors
        self._accept_changed_model = accept_changed_model
        self._results = results
        self._show_progress = progress
        self._talkative = talkative
        self._complain = complain
        self._again = again
        self._report = report
        self._view: View | None = None
        self._instance: dg.DagsterInstance | None = None
        self._current: tuple[CompiledTemplate, str] | None = None

    def run(self) -> int:
        """Runs everything; returns the exit code."""
        with ExitStack() as stack:
            self._terminal = stack.enter_context(quiet_terminal(redirect=not debugging()))
            self._interrupts = stack.enter_context(Interrupts(self._stopping, self._stop_now))
            try:
                for compiled in self._templates:
                    compiled.check_built()
                self._warn(self.warnings)
                self._open(stack)
                for compiled in self._templates:
                    self._run_one(compiled)
                    if self._interrupts.received is not None:
                        break
            except KeyboardInterrupt:
                pass
            return self._exit_code()

    def _exit_code(self) -> int:
        finished = [each.outcome for each in self.runs]
        if len(finished) == len(self._templates) and all(each.succeeded for each in finished):
            return OK
        if self._interrupts.received is not None:
            self._say_what_was_left_out()
            return self._interrupts.exit_code
        failed = [each for each in finished if not each.succeeded]
        return BAD_INPUT if all(each.bad_input for each in failed) else FAILED

    def _open(self, stack: ExitStack) -> None:
        with monitoring(self._new_view()):
            from mloc_dagster.local_run import check_runnable, misfits
            from mloc_dagster.ops import WORKFLOW_TAG
            from mloc_dagster.services import open_instance

            for compiled in self._templates:
                check_runnable(compiled)
            self._instance = stack.enter_context(open_instance())
            if self._workflow_id is not None:
                close_dead_runs(self._instance, WORKFLOW_TAG, self._workflow_id)
            found = [each for compiled in self._templates for each in misfits(compiled)]
        self.warnings += found
        self._warn(found)

    def _run_one(self, compiled: CompiledTemplate) -> None:
        run_id = str(uuid.uuid4())
        self._current = (compiled, run_id)
        self._say_id(compiled, self._workflow_id or run_id)
        with monitoring(self._new_view()) as monitor:
            outcome = self._execute(compiled, run_id)
        interrupted = not outcome.succeeded and self._interrupts.received is not None
        if interrupted:
            self._cancel(run_id)
        found = self._template_run(compiled, outcome, monitor, interrupted=interrupted)
        self.runs.append(found)
        self._current = None
        if self._talkative and self._report is not None:
            self._report(found, self._terminal.out)
        if self._talkative and self._again is None:
            self._say_where_to_look(found)
        if self._complain:
            print_problems(found, self._terminal.err)

    def _execute(self, compiled: CompiledTemplate, run_id: str) -> RunOutcome:
        from dagster import DagsterExecutionInterruptedError

        from mloc_dagster.local_run import run_template

        if self._instance is None:
            raise AssertionError("the instance is opened first")
        try:
            return run_template(
                compiled,
                self._instance,
                workflow_id=self._workflow_id,
                retry_errors=self._retry_errors,
                accept_changed_model=self._accept_changed_model,
                run_id=run_id,
                tags={
                    PROCESS_TAG: this_process(),
                    RESULTS_TAG: redact_urls(open_store().url),
                    **launched_with("mloc run"),
                },
            )
        except (KeyboardInterrupt, DagsterExecutionInterruptedError):
            return self._interrupted_outcome(compiled, run_id)

    def _interrupted_outcome(self, compiled: CompiledTemplate, run_id: str) -> RunOutcome:
        from mloc_dagster.local_run import RunOutcome, outcomes

        workflow_id = self._workflow_id or run_id
        return RunOutcome(
            run_id=run_id,
            workflow_id=workflow_id,
            succeeded=False,
            tasks=outcomes(compiled, workflow_id),
            failures=("interrupted",),
            bad_input=False,
        )

    def _template_run(
        self,
        compiled: CompiledTemplate,
        outcome: RunOutcome,
        monitor: Monitor | None,
        *,
        interrupted: bool,
    ) -> TemplateRun:
        done = {} if monitor is None else monitor.tasks
        return TemplateRun(
            name=compiled.metadata.name,
            outcome=outcome,
            succeeded_tasks=frozenset(each for each, task in done.items() if task.succeeded),
            interrupted=interrupted,
            resume=self._resume_command(outcome),
        )

    def _resume_command(self, outcome: RunOutcome) -> str | None:
        if not outcome.can_go_on:
            return None
        again = self._again
        words = ["mloc", "run", "--resume", outcome.workflow_id] if again is None else [*again]
        summaries = [each.summary for each in outcome.tasks if each.summary is not None]
        if any(not each.ok for each in summaries) and "--retry-errors" not in words:
            words.append("--retry-errors")
        if again is None and self._results is not None:
            words += ["--results", self._results]
        return shlex.join(words)

    def _new_view(self) -> View:
        self._view = view_for(self._terminal.err, wanted=self._show_progress)
        return self._view

    def _warn(self, found: Sequence[Diagnostic]) -> None:
        if self._talkative:
            for finding in found:
                self._say(str(finding), "yellow")

    def _stopping(self) -> None:
        if self._view is not None and self._talkative:
            self._view.say("stopping: finished rows are kept (Ctrl-C again stops at once)")

    def _stop_now(self, code: int) -> NoReturn:
        """Ends the process from the thread that heard the second signal."""
        try:
            if self._view is not None:
                self._view.close()
            if self._current is not None:
                compiled, run_id = self._current
                self._cancel_soon(run_id)
                outcome = self._interrupted_outcome(compiled, run_id)
                found = self._template_run(compiled, outcome, None, interrupted=True)
                if found.resume is not None:
                    self._say(f"stopped; go on with: {found.resume}")
                # Meanwhile the run, which the first signal broke, may have said that it failed.
                self._cancel_soon(run_id)
        finally:
            sys.stdout.flush()
            os._exit(code)

    def _cancel_soon(self, run_id: str) -> None:
        """Cancels a run, unless Dagster's database keeps it waiting."""
        closing = threading.Thread(target=self._cancel, args=(run_id,), daemon=True)
        closing.start()
        closing.join(CLOSING_S)

    def _cancel(self, run_id: str) -> None:
        """Tells Dagster that the run was canceled, and did not fail."""
        from dagster import DagsterRunStatus

        if self._instance is None:
            return
        run = self._instance.get_run_by_id(run_id)
        if run is not None and run.status is not DagsterRunStatus.CANCELED:
            self._instance.report_run_canceled(run, "Interrupted by a signal.")

    def _say_id(self, compiled: CompiledTemplate, workflow_id: str) -> None:
        """Says what `--resume` takes, in case that nothing can be said at the end."""
        if self._talkative and self._again is None:
            tasks = len(compiled.tasks)
            what = "task" if tasks == 1 else f"{tasks} tasks of"
            self._say(f"{compiled.metadata.name}: {what} {workflow_id}")

    def _say_where_to_look(self, run: TemplateRun) -> None:
        place = [] if self._results is None else ["--results", self._results]
        tasks = [each for each in run.outcome.tasks if each.summary or each.training]
        if tasks:
            name = tasks[0].task_id if len(tasks) == 1 else run.outcome.workflow_id
            command = shlex.join(["mloc", "view", name, *place])
            self._say(f"{run.name}: look at the results in a browser: {command}")

    def _say_what_was_left_out(self) -> None:
        left = [each.metadata.name for each in self._templates[len(self.runs) :]]
        if left and self._talkative:
            self._say(f"not run: {', '.join(left)}")

    def _say(self, message: str, style: str = "") -> None:
        self._terminal.err.print(message, markup=False, style=style or None, soft_wrap=True)
