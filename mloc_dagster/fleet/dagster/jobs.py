"""Jobs that stay loaded in a warm worker."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping

from dagster import DagsterRun, JobDefinition, RepositoryDefinition

from mloc_dagster.errors import TerminalError
from mloc_dagster.fleet.dagster.internals import (
    SINGLETON_REPOSITORY_NAME,
    CodePointer,
    CustomPointer,
    InMemoryJob,
    ModuleCodePointer,
    RegisteredCodeLocationOrigin,
    RemoteJobOrigin,
    RemoteRepositoryOrigin,
    reconstruct_repository_def_from_pointer,
)
from mloc_dagster.library import library_fingerprint
from mloc_dagster.recent_templates import recent_names
from mloc_dagster.services import LIBRARY_LOCATION

_KEPT_JOBS = 256
_KEPT_REPOSITORIES = 64

LIBRARY = ModuleCodePointer("mloc_dagster.definitions", "defs")
"""Where the jobs of the template library are."""

CONTENT_TAG = ".dagster/mloc_content"
"""On runs of a template that came over the API: the hash of its content."""

_SUBMITTED = "mloc_dagster.dispatch.submitted_location"
_SUBMITTED_LOCATION = "mloc_dagster.dispatch.submitted_location"


def submitted_pointer(content_hash: str) -> CustomPointer:
    """Returns where the job of a template is that came over the API."""
    return CustomPointer(ModuleCodePointer(_SUBMITTED, "load"), [content_hash], [])


def job_origin(job_name: str, location: str = LIBRARY_LOCATION) -> RemoteJobOrigin:
    """Returns how the UI finds a job: by default among the templates of the library."""
    origin = RegisteredCodeLocationOrigin(location)
    repository = RemoteRepositoryOrigin(origin, SINGLETON_REPOSITORY_NAME)
    return RemoteJobOrigin(repository, job_name)


class Jobs:
    """The jobs of the code locations that runs come from, built once each.

    Dagster keeps one job per process and builds its whole repository anew for another. The
    template library is looked at before each use: an edited template is a new job.
    """

    # Dagster composes graphs on one stack, which all threads share.
    _building = threading.Lock()

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._fingerprint: object = None
        self._repositories: OrderedDict[CodePointer, RepositoryDefinition] = OrderedDict()
        self._jobs: OrderedDict[object, JobDefinition] = OrderedDict()

    def job_of(self, run: DagsterRun) -> InMemoryJob:
        """Returns the job of a run, cut down to what the run selects.

        Raises:
            TerminalError: If the run does not say where its code is.
        """
        if run.job_code_origin is None:
            raise TerminalError(f"run {run.run_id} does not say where its code is")
        pointer = _canonical(run.job_code_origin.repository_origin.code_pointer, run.tags)
        selection = (
            frozenset(run.resolved_op_selection or ()),
            run.asset_selection,
            run.asset_check_selection,
        )
        with self._lock:
            self._forget_old_code()
            key = (pointer, run.job_name, *selection)
            if key not in self._jobs:
                repository = self._repository(pointer)
                with self._building:
                    self._jobs[key] = repository.get_maybe_subset_job_def(
                        run.job_name,
                        run.resolved_op_selection,
                        run.asset_selection,
                        run.asset_check_selection,
                    )
            return InMemoryJob(self._kept(key))

    def job(self, pointer: CodePointer, name: str) -> JobDefinition:
        """Returns a whole job of a code location."""
        with self._lock:
            self._forget_old_code()
            key = (pointer, name)
            if key not in self._jobs:
                repository = self._repository(pointer)
                with self._building:
                    self._jobs[key] = repository.get_job(name)
            return self._kept(key)

    def _kept(self, key: object) -> JobDefinition:
        self._jobs.move_to_end(key)
        if len(self._jobs) > _KEPT_JOBS:
            self._jobs.popitem(last=False)
        return self._jobs[key]

    def preload(self, pointer: CodePointer) -> None:
        """Builds a repository before it is asked for."""
        with self._lock:
            self._forget_old_code()
            self._repository(pointer)

    def _repository(self, pointer: CodePointer) -> RepositoryDefinition:
        if pointer not in self._repositories:
            with self._building:
                self._repositories[pointer] = reconstruct_repository_def_from_pointer(pointer)
        # Each template that was submitted has one of its own; the library's is used the most.
        self._repositories.move_to_end(pointer)
        if len(self._repositories) > _KEPT_REPOSITORIES:
            self._repositories.popitem(last=False)
        return self._repositories[pointer]

    def _forget_old_code(self) -> None:
        fingerprint = (library_fingerprint(), recent_names())
        if fingerprint != self._fingerprint:
            self._fingerprint = fingerprint
            self._repositories.clear()
            self._jobs.clear()


def _canonical(pointer: CodePointer, tags: Mapping[str, str]) -> CodePointer:
    """Returns our own pointer for it, wherever the code server that named it runs.

    The location of the submitted templates is another one every few seconds: a run that was
    launched from it goes on with the template that it was launched with.
    """
    if not isinstance(pointer, ModuleCodePointer):
        return pointer
    if (pointer.module, pointer.fn_name) == (LIBRARY.module, LIBRARY.fn_name):
        return LIBRARY
    if pointer.module == _SUBMITTED_LOCATION and CONTENT_TAG in tags:
        return submitted_pointer(tags[CONTENT_TAG])
    return pointer
