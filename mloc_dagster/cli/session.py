"""Running templates in this process, one after the other, for a person who watches."""

from __future__ import annotations

import os
import shlex
import sys
import threading
import uuid
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, NoReturn

from rich.console import Console

from mloc_dagster.cli.debug import debugging
from mloc_dagster.cli.exit_codes import BAD_INPUT, FAILED, OK
from mloc_dagster.cli.interrupts import Interrupts
from mloc_dagster.cli.progress import Monitor, View, monitoring, view_for
from mloc_dagster.cli.quiet import quiet_terminal
from mloc_dagster.cli.report import TemplateRun, print_problems, print_report
from mloc_dagster.cli.resume import close_dead_runs, this_process
from mloc_dagster.compile.compiler import CompiledTemplate
from mloc_dagster.compile.diagnostics import Diagnostic
from mloc_dagster.ops.run_tags import PROCESS_TAG

if TYPE_CHECKING:
    import dagster as dg

    from mloc_dagster.local_run import RunOutcome

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
            from mloc_dagster.ops.plan import WORKFLOW_TAG
            from mloc_dagster.services.instance import open_instance

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
                tags={PROCESS_TAG: this_process()},
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
        if outcome.succeeded or outcome.bad_input or not outcome.tasks:
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

    def _say_what_was_left_out(self) -> None:
        left = [each.metadata.name for each in self._templates[len(self.runs) :]]
        if left and self._talkative:
            self._say(f"not run: {', '.join(left)}")

    def _say(self, message: str, style: str = "") -> None:
        self._terminal.err.print(message, markup=False, style=style or None, soft_wrap=True)
