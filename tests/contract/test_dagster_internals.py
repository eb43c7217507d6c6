"""What mloc relies on in Dagster's private API, and what to do when a new version fails it.

Everything private comes through `mloc_dagster/services/internals.py` (the instance, its storages
and its daemons), `mloc_dagster/services/stack/code_server.py` (serving code locations) and
`mloc_dagster/fleet/dagster/internals.py` (runs and steps). When a test here fails after an upgrade
of Dagster:

1. Look the name up in Dagster's new source; each test says in its text what mloc needs of it.
2. Change that module alone, so that the rest of mloc sees what it saw.
3. Run what these names are for: of the fleet `tests/contract/test_fleet_runs.py`,
   `tests/unit/fleet/test_replay.py` and `tests/e2e/test_fleet_engine.py`, of the storages
   `tests/e2e/test_event_log.py`, `tests/e2e/test_dispatcher.py` and `tests/e2e/chaos`.
"""

from __future__ import annotations

import ast
import inspect
import threading
from contextlib import suppress
from contextvars import Context
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import dagster as dg
import pytest
from dagster._core.execution.plan.active import ActiveExecution
from dagster._core.execution.plan.instance_concurrency_context import InstanceConcurrencyContext
from dagster._core.execution.retries import RetryMode
from dagster._core.launcher import RunLauncher
from dagster._core.storage.event_log.sql_event_log import SqlEventLogStorage
from dagster._core.utils import FuturesAwareThreadPoolExecutor
from dagster._grpc.__generated__ import dagster_api_pb2

import mloc_dagster
from mloc_dagster.fleet.dagster import internals
from mloc_dagster.services import internals as storages
from mloc_dagster.services.stack import code_server
from mloc_dagster.services.stack.code_server import LocationServer
from mloc_dagster.services.stack.dagster_home import LIBRARY
from mloc_dagster.settings import settings

PACKAGE = Path(mloc_dagster.__file__).parent


@dg.op(out=dg.DynamicOut(int))
def plan() -> object:
    for each in range(2):
        yield dg.DynamicOutput(each, f"k{each}")


@dg.op
def shard(number: int) -> int:
    return number


@dg.op
def collect(numbers: list[int]) -> None:
    assert sorted(numbers) == [0, 1]


@dg.job
def work() -> None:
    collect(plan().map(shard).collect())


def private_imports(path: Path) -> list[str]:
    """The modules of Dagster that are nobody's to import and that a file imports."""
    found: list[str] = []
    for node in ast.walk(ast.parse(path.read_text())):
        names = [each.name for each in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
        found += [
            name
            for name in names
            if name.startswith(("dagster._", "dagster_shared", "dagster.core"))
        ]
    return found


def test_three_modules_import_what_is_private() -> None:
    importers = {
        str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.py") if private_imports(path)
    }
    assert importers == {
        "fleet/dagster/internals.py",
        "services/internals.py",
        "services/stack/code_server.py",
    }, "import it there, and say here what for"


@pytest.mark.parametrize(
    ("function", "arguments", "purpose"),
    [
        (internals.execute_run_iterator, {"resume_from_failure"}, "a run worker drives a run"),
        (
            internals.execute_plan_iterator,
            {"retry_mode", "run_config"},
            "a step worker runs one step, and leaves retries to the run",
        ),
        (
            internals.create_execution_plan,
            {"step_keys_to_execute", "known_state"},
            "a step worker plans one step, from what the run knows",
        ),
        (
            internals.reconstruct_repository_def_from_pointer,
            {"pointer"},
            "workers keep the repository of a code pointer loaded",
        ),
        (
            internals.StepRetryData,
            {"error", "seconds_to_wait"},
            "the run says that a lost attempt is followed by another",
        ),
        (
            internals.StepFailureData,
            {"error", "user_failure_data"},
            "the run says that a step failed whose worker could not",
        ),
    ],
)
def test_functions_take_what_the_fleet_gives_them(
    function: object, arguments: set[str], purpose: str
) -> None:
    assert callable(function)
    assert arguments <= set(inspect.signature(function).parameters), purpose


def test_a_plan_under_way_shows_its_steps() -> None:
    """`rebuild`, `in_flight` and `_free_ended` read and move steps of an `ActiveExecution`."""
    steps = internals.create_execution_plan(work)
    with (
        suppress(dg.DagsterExecutionInterruptedError),  # a plan that is left before its end
        ActiveExecution(steps, retry_mode=RetryMode.ENABLED) as active,
    ):
        assert not internals.in_flight(active, "plan"), "it holds what was handed out"
        active._executable.remove("plan")
        active._in_flight.add("plan")
        assert internals.in_flight(active, "plan")
        assert active._success == active._failed == set(), "the ends of steps, by key"
        assert active.retry_state.snapshot_attempts() == {}, "failed attempts, by key"
        assert active._instance_concurrency_context is None, "replaced while a log is replayed"
        active._in_flight.clear()
        active._executable.append("plan")
        active.mark_interrupted()


def test_pools_show_who_waits_for_a_slot() -> None:
    """`ask_again` lets waiting steps ask at once; `_free_ended` frees what ended steps hold."""
    with dg.DagsterInstance.ephemeral() as instance:
        run = instance.create_run_for_job(work)
        with InstanceConcurrencyContext(instance, run) as slots:
            assert (slots._run_id, slots._instance) == (run.run_id, instance)
            assert slots._pending_timeouts == {}, "seconds until a step asks again, by key"
            assert not slots.has_pending_claims()
            assert list(slots.pending_claim_steps()) == []
        info = instance.event_log_storage.get_concurrency_info
        assert "concurrency_key" in inspect.signature(info).parameters
    for each in (SqlEventLogStorage.has_unassigned_slots, SqlEventLogStorage.assign_pending_steps):
        assert callable(each), "`free_ended_steps` does what a dead run worker left undone"
    claim = SqlEventLogStorage._claim_concurrency_slot
    assert list(inspect.signature(claim).parameters) == [
        "self",
        "concurrency_key",
        "run_id",
        "step_key",
    ], "`EventLog` puts it into one transaction; drop that once Dagster does so itself"


def test_the_state_of_a_run_can_be_cut_down_to_one_step() -> None:
    """`messages.state_for_step` sends a shard its own part, or messages grow with the shards."""
    known = internals.KnownExecutionState({}, {"plan": {"result": ["k0", "k1"]}})
    fields = ("previous_retry_attempts", "dynamic_mappings", "ready_outputs")
    assert set(fields) <= set(known._fields)
    steps = internals.create_execution_plan(work, known_state=known)
    step = steps.get_step_by_key("shard[k1]")
    assert isinstance(step, internals.ExecutionStep)
    assert step.get_execution_dependency_keys() == {"plan"}


def test_a_run_launcher_is_asked_for_what_ours_answers() -> None:
    """`FleetRunLauncher` overrides these; a new abstract method would break `mloc up`."""
    answered = {"launch_run", "resume_run", "terminate", "check_run_worker_health"}
    asked = {name for name, _ in inspect.getmembers(RunLauncher)}
    assert answered | {"supports_resume_run", "supports_check_run_worker_health"} <= asked
    assert RunLauncher.__abstractmethods__ <= answered


def test_a_step_runs_from_its_request_alone() -> None:
    """`run_step` is what a worker does with a ticket; its events are in the order of Dagster's."""
    with dg.DagsterInstance.local_temp() as instance:
        done = work.execute_in_process(instance=instance)
        run = instance.get_run_by_id(done.run_id)
        assert run is not None
        before = len(instance.all_logs(run.run_id))
        known = internals.KnownExecutionState({}, {})
        internals.run_step(internals.InMemoryJob(work), run, instance, "plan", known)
        events = [
            entry.dagster_event.event_type
            for entry in instance.all_logs(run.run_id)[before:]
            if entry.dagster_event is not None
        ]
    assert events.index(dg.DagsterEventType.STEP_START) < events.index(
        dg.DagsterEventType.STEP_SUCCESS
    )


@pytest.mark.parametrize(
    ("table", "columns", "purpose"),
    [
        (
            storages.SqlEventLogStorageTable,
            {"id", "run_id", "event", "dagster_event_type", "step_key", "asset_key", "partition"},
            "`services.event_log` writes events in groups and reads them without their runs",
        ),
        (
            storages.RunsTable,
            {"run_id", "pipeline_name", "status", "create_timestamp", "start_time", "end_time"},
            "`services.run_rows` reads the queue without decoding each run",
        ),
        (storages.RunTagsTable, {"run_id", "key", "value"}, "runs are found by mloc's tags"),
    ],
)
def test_tables_have_the_columns_that_are_read(table: Any, columns: set[str], purpose: str) -> None:
    assert columns <= set(table.c.keys()), purpose


def test_storages_lend_a_connection() -> None:
    """Queries of our own go through the pool of the storage that Dagster has opened."""
    assert callable(storages.SqlRunStorage.connect)
    assert callable(storages.SqlEventLogStorage.index_connection)
    assert callable(storages.SqlEventLogStorage.run_connection)


def test_tags_are_those_that_dagster_writes() -> None:
    """`tasks.retry` makes what Dagster's own re-execution from failure would."""
    assert storages.PARENT_RUN_ID_TAG == "dagster/parent_run_id"
    assert storages.ROOT_RUN_ID_TAG == "dagster/root_run_id"
    assert storages.RESUME_RETRY_TAG == "dagster/is_resume_retry"
    assert storages.PRIORITY_TAG == "dagster/priority"
    assert storages.TAGS_TO_MAYBE_OMIT_ON_RETRY, "tags that a retry does not inherit"


def test_steps_and_their_events_are_read_as_dagster_writes_them() -> None:
    """`tasks.steps` reads a run's steps, `api.logs` goes on after an event's number."""
    states = {each.name for each in storages.StepEventStatus}
    assert {"SUCCESS", "FAILURE", "IN_PROGRESS"} <= states
    assert storages.EventLogCursor.from_storage_id(7).to_string()
    assert {"ASSET_MATERIALIZATION"} <= {each.name for each in storages.ASSET_EVENTS}
    cause = storages.SerializableErrorInfo("inner", [], "ValueError")
    whole = storages.SerializableErrorInfo("outer", [], "RuntimeError", cause=cause)
    assert whole.cause is not None
    assert whole.cause.message == "inner", "a failure is told by its first cause"


def test_a_run_of_a_job_that_is_no_file_is_made_as_dagster_makes_it() -> None:
    """`dispatch.launch` and `tasks.retry` create runs whose code origin names no module."""
    pointer = internals.CustomPointer(internals.ModuleCodePointer("m", "load"), ["hash"], [])
    origin = internals.ReconstructableRepository(pointer).get_reconstructable_job("job")
    assert origin.get_python_origin().job_name == "job"
    location = internals.RegisteredCodeLocationOrigin("here")
    repository = internals.RemoteRepositoryOrigin(location, internals.SINGLETON_REPOSITORY_NAME)
    assert internals.RemoteJobOrigin(repository, "job").job_name == "job"
    plan = internals.create_execution_plan(work)
    snapshot = internals.snapshot_from_execution_plan(plan, "id")
    assert {each.key for each in snapshot.steps} >= {"plan", "collect"}
    assert (
        "instance"
        in inspect.signature(internals.KnownExecutionState.build_for_reexecution).parameters
    )
    for context in (internals.LaunchRunContext, internals.ResumeRunContext):
        assert {"dagster_run", "workspace"} <= set(context._fields)


def test_the_instance_is_opened_from_a_folder_and_parts_of_our_own() -> None:
    """`services.instance` opens dagster.yaml with parts replaced; sensors open it in a process."""
    assert {"base_dir", "config_dir", "overrides"} <= set(
        inspect.signature(storages.InstanceRef.from_dir).parameters
    )
    logs = inspect.signature(storages.LocalComputeLogManager).parameters
    assert {"base_dir", "inst_data"} <= set(logs)
    assert "input" in storages.DISALLOWED_NAMES, "words that are no names of ops"
    assert issubclass(storages.DagsterRunAlreadyExists, dg.DagsterError)


def test_a_code_location_is_loaded_anew_in_the_process_that_serves_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The code server replaces what its servicer has loaded, and the name that clients watch."""
    monkeypatch.setenv("MLOC_TEMPLATES_DIR", str(tmp_path))
    settings.cache_clear()
    template = (PACKAGE.parent / "templates/core/echo.yaml").read_text()
    (tmp_path / "one.yaml").write_text(template)
    stopping = threading.Event()
    # In a process of its own no instance is the current one, as some test's may be here.
    served = Context().run(LocationServer, LIBRARY, FuturesAwareThreadPoolExecutor(1), stopping)
    try:
        assert _jobs(served) == {"echo"}
        before = served._server_id
        (tmp_path / "two.yaml").write_text(template.replace("name: echo", "name: other"))
        Context().run(served.ReloadCode, dagster_api_pb2.ReloadCodeRequest(), MagicMock())
        assert _jobs(served) == {"echo", "other"}
        assert served._server_id != before
        monkeypatch.setattr(code_server, "LoadedRepositories", MagicMock(side_effect=OSError("no")))
        served.ReloadCode(dagster_api_pb2.ReloadCodeRequest(), MagicMock())
        assert served._loaded_repositories is None
        assert "OSError" in str(served._serializable_load_error)
    finally:
        stopping.set()


def _jobs(served: LocationServer) -> set[str]:
    assert served._loaded_repositories is not None, served._serializable_load_error
    (repository,) = served._loaded_repositories.definitions_by_name.values()
    return {"echo", "other"} & set(repository.job_names)
