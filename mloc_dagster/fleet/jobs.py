"""Jobs that stay loaded in a warm worker."""

from __future__ import annotations

import threading
from collections import OrderedDict

from dagster import DagsterRun, JobDefinition, RepositoryDefinition
from dagster._core.code_pointer import CodePointer, ModuleCodePointer
from dagster._core.definitions.job_base import InMemoryJob
from dagster._core.definitions.reconstruct import reconstruct_repository_def_from_pointer

from mloc_dagster.errors import TerminalError
from mloc_dagster.library import library_fingerprint

_KEPT_JOBS = 256

LIBRARY = ModuleCodePointer("mloc_dagster.definitions", "defs")
"""Where the jobs of the template library are."""


class Jobs:
    """The jobs of the code locations that runs come from, built once each.

    Dagster keeps one job per process and builds its whole repository anew for another. The
    template library is looked at before each use: an edited template is a new job.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._fingerprint: object = None
        self._repositories: dict[CodePointer, RepositoryDefinition] = {}
        self._jobs: OrderedDict[object, JobDefinition] = OrderedDict()

    def job_of(self, run: DagsterRun) -> InMemoryJob:
        """Returns the job of a run, cut down to what the run selects.

        Raises:
            TerminalError: If the run does not say where its code is.
        """
        if run.job_code_origin is None:
            raise TerminalError(f"run {run.run_id} does not say where its code is")
        pointer = _canonical(run.job_code_origin.repository_origin.code_pointer)
        selection = (
            frozenset(run.resolved_op_selection or ()),
            run.asset_selection,
            run.asset_check_selection,
        )
        with self._lock:
            self._forget_old_code()
            key = (pointer, run.job_name, *selection)
            if key not in self._jobs:
                self._jobs[key] = self._repository(pointer).get_maybe_subset_job_def(
                    run.job_name,
                    run.resolved_op_selection,
                    run.asset_selection,
                    run.asset_check_selection,
                )
            self._jobs.move_to_end(key)
            if len(self._jobs) > _KEPT_JOBS:
                self._jobs.popitem(last=False)
            return InMemoryJob(self._jobs[key])

    def preload(self, pointer: CodePointer) -> None:
        """Builds a repository before it is asked for."""
        with self._lock:
            self._forget_old_code()
            self._repository(pointer)

    def _repository(self, pointer: CodePointer) -> RepositoryDefinition:
        if pointer not in self._repositories:
            self._repositories[pointer] = reconstruct_repository_def_from_pointer(pointer)
        return self._repositories[pointer]

    def _forget_old_code(self) -> None:
        fingerprint = library_fingerprint()
        if fingerprint != self._fingerprint:
            self._fingerprint = fingerprint
            self._repositories.clear()
            self._jobs.clear()


def _canonical(pointer: CodePointer) -> CodePointer:
    """Returns the library's own pointer for it, wherever the code server that named it runs."""
    known = (LIBRARY.module, LIBRARY.fn_name)
    if isinstance(pointer, ModuleCodePointer) and (pointer.module, pointer.fn_name) == known:
        return LIBRARY
    return pointer
