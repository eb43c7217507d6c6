"""Accepted tasks become runs on real workers, and the ledger learns what became of them."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dagster as dg
import httpx
import pytest
from dagster._core.launcher import LaunchRunContext
from sqlalchemy import create_engine, text
from sqlalchemy.engine import make_url

from mloc_dagster.api import create_app
from mloc_dagster.compile import CompiledTemplate, compile_file, compile_mapping
from mloc_dagster.dispatch import Dispatcher, batch_key, launch as launch_module
from mloc_dagster.events import TaskEvent, TaskEventType, listening
from mloc_dagster.executors import task_id_for
from mloc_dagster.fleet import LIBRARY, Jobs as JobsOfLibrary, TicketState, run_ticket_id
from mloc_dagster.home import postgres_url
from mloc_dagster.ledger import Ledger, NewTask, Submission, TaskEntry
from mloc_dagster.library import library_files
from mloc_dagster.ops import PROCESS_TAG, this_process
from mloc_dagster.results import open_store
from mloc_dagster.settings import settings
from mloc_dagster.tasks import launch_template, retry_run
from mloc_dagster.wire import TaskState
from tests.e2e.api_process import served
from tests.e2e.fleet_processes import RUNS, FleetProcesses
from tests.e2e.stack import ROOT, until
from tests.image_server import image_server
from tests.redis_server import RedisServer

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

DATABASE = "dispatcher"


@pytest.fixture(scope="module")
def environment(
    redis_server: RedisServer, session_instance: dg.DagsterInstance, session_home: Path
) -> Iterator[dict[str, str]]:
    """Databases of this module's own, on the servers of the session."""
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        patch.setenv("MLOC_HOME", str(session_home))
        settings.cache_clear()
        server = make_url(postgres_url())
        admin = create_engine(server, isolation_level="AUTOCOMMIT")
        with admin.connect() as connection:
            connection.execute(text(f"DROP DATABASE IF EXISTS {DATABASE} WITH (FORCE)"))
            connection.execute(text(f"CREATE DATABASE {DATABASE}"))
        admin.dispose()
        known = {
            "MLOC_HOME": str(folder / "home"),
            "MLOC_RESULTS_URL": str(folder / "results"),
            "MLOC_REDIS_URL": redis_server.url.removesuffix("/0") + "/6",
            "MLOC_POSTGRES_URL": server.set(database=DATABASE).render_as_string(False),
            "MLOC_API_DATA_ROOTS": str(folder / "data"),
            "MLOC_LEASE_TTL_S": "2",
            "MLOC_DRAIN_GRACE_S": "0",
        }
        for key, value in known.items():
            patch.setenv(key, value)
        settings.cache_clear()
        yield known
    settings.cache_clear()


@pytest.fixture(scope="module")
def started(environment: dict[str, str]) -> Iterator[FleetProcesses]:
    folder = Path(environment["MLOC_HOME"])
    folder.mkdir()
    opened = FleetProcesses(folder, environment)
    opened.engine.client.flushdb()
    opened.start("r1", RUNS)
    opened.start("w1")
    opened.await_workers("r1", "w1")
    yield opened
    opened.close()


@pytest.fixture
def fleet(
    started: FleetProcesses, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> FleetProcesses:
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    settings.cache_clear()
    return started


class Control:
    """A ledger, and dispatchers over it that may be dropped at any point."""

    def __init__(self, fleet: FleetProcesses) -> None:
        self.fleet = fleet
        self.ledger = Ledger.open()
        self.dispatcher = self.fresh()

    def fresh(self) -> Dispatcher:
        return Dispatcher(self.ledger, self.fleet.instance, self.fleet.engine)

    def submit(self, **template: Any) -> str:
        document = {"apiVersion": "mloc/v1", "kind": "EchoTask", **template}
        document.setdefault("metadata", {"name": "echoed"})
        compiled = compile_mapping(document)
        workflow_id = str(uuid.uuid4())
        tasks = tuple(
            NewTask(
                task_id=task_id_for(workflow_id, compiled, each.task.name),
                node=each.task.name,
                task_type=each.task.spec.task_type,
                depends_on=each.task.depends_on,
                rows=len(each.mapping["data"]["items"])
                if "items" in each.mapping["data"]
                else None,
                batch_key=batch_key(compiled),
            )
            for each in compiled.tasks
        )
        submission = Submission(
            workflow_id=workflow_id,
            template_name=compiled.metadata.name,
            owner="",
            labels={},
            content_hash=compiled.content_hash,
            document=compiled.document,
            tasks=tasks,
        )
        self.ledger.accept([submission])
        return workflow_id

    def await_end(self, *task_ids: str, timeout_s: float = 60.0) -> dict[str, TaskEntry]:
        def ended() -> dict[str, TaskEntry] | None:
            self.dispatcher.turn()
            found = self.ledger.tasks(task_ids)
            return found if all(each.state.ended for each in found.values()) else None

        found = until(ended, f"{task_ids} end", timeout_s)
        assert found is not None
        return found

    def await_state(self, task_id: str, state: TaskState) -> TaskEntry:
        def reached() -> TaskEntry | None:
            self.dispatcher.turn()
            entry = self.ledger.task(task_id)
            return entry if entry is not None and entry.state is state else None

        found = until(reached, f"{task_id} is {state}", 60.0)
        assert found is not None
        return found


@contextmanager
def heard() -> Iterator[list[TaskEvent]]:
    """Collects what is told meanwhile."""
    events: list[TaskEvent] = []
    with listening(events.append):
        yield events


@pytest.fixture
def control(fleet: FleetProcesses) -> Iterator[Control]:
    opened = Control(fleet)
    yield opened
    opened.dispatcher.close()
    opened.ledger.close()


def echo(*items: str, **spec: Any) -> dict[str, Any]:
    return {"spec": {"taskType": "echo", "data": {"type": "list", "items": list(items)}, **spec}}


def outputs(task_id: str) -> list[str]:
    result = json.loads(open_store().task(task_id).read_bytes("responses.json"))["result"]
    return [each["output"] for each in result["items"]]


def test_small_tasks_share_a_run_and_have_results_of_their_own(control: Control) -> None:
    ids = [control.submit(**echo(f"a{n}", f"b{n}")) for n in range(20)]
    other = control.submit(**echo("x", echo={"delay_s": 0.01}))
    found = control.await_end(*ids, other)
    assert {each.state for each in found.values()} == {TaskState.DONE}
    assert len({found[each].run_id for each in ids}) == 1
    assert found[other].run_id != found[ids[0]].run_id
    together = str(found[ids[0]].run_id)
    assert control.fleet.await_end(together) is dg.DagsterRunStatus.SUCCESS
    for number, task_id in enumerate(ids):
        assert outputs(task_id) == [f"a{number}", f"b{number}"]
        folder = open_store().task(task_id)
        assert folder.exists("responses.parquet")
        assert folder.exists("manifest.json")
        assert (found[task_id].rows, found[task_id].errors) == (2, 0)


def test_a_workflow_has_a_run_of_its_own(control: Control) -> None:
    stages = [
        {"name": "first", "spec": echo("one", "two")["spec"]},
        {
            "name": "second",
            "spec": {
                "taskType": "echo",
                "data": {"type": "list", "items": ["again: ${first.result.items[0].output}"]},
            },
        },
    ]
    workflow_id = control.submit(metadata={"name": "staged"}, spec={"stages": stages})
    found = control.await_end(f"{workflow_id}-first", f"{workflow_id}-second")
    assert {each.state for each in found.values()} == {TaskState.DONE}
    assert outputs(f"{workflow_id}-second") == ["again: one"]
    (run_id,) = {str(each.run_id) for each in found.values()}
    assert control.fleet.instance.get_run_by_id(run_id) is not None


@pytest.mark.parametrize("after", ["planning", "making", "handing over"])
def test_a_dispatcher_that_dies_is_followed_by_one_that_goes_on(
    control: Control, monkeypatch: pytest.MonkeyPatch, after: str
) -> None:
    """Each step may be the last one that was done, or have been done and not noted."""
    batched = [control.submit(**echo(f"row {n}")) for n in range(3)]
    alone = control.submit(
        **echo("alone", parallel={"max_shards": 1}, echo={"seed": 1, "poison": [7]})
    )

    class Killed(BaseException):
        pass

    def die(*_: object, **__: object) -> None:
        raise Killed

    place = {
        "planning": "mloc_dagster.dispatch.dispatcher.hand_over",
        "making": "mloc_dagster.dispatch.launch.launcher_of",
        "handing over": "mloc_dagster.ledger.ledger.Ledger.handed_over",
    }
    with monkeypatch.context() as patch:
        patch.setattr(place[after], die)
        with pytest.raises(Killed):
            control.dispatcher.turn()
    control.dispatcher = control.fresh()
    found = control.await_end(*batched, alone)
    assert {each.state for each in found.values()} == {TaskState.DONE}
    assert {each.runs for each in found.values()} == {1}
    assert outputs(alone) == ["alone"]
    assert [outputs(each) for each in batched] == [["row 0"], ["row 1"], ["row 2"]]
    runs = {str(each.run_id) for each in found.values()}
    assert len(runs) == 2
    for each in runs:
        assert len(control.fleet.steps(each, dg.DagsterEventType.RUN_START)) == 1


def test_what_redis_forgot_is_done_all_the_same(control: Control) -> None:
    slow = control.submit(
        **echo(*(f"row {n}" for n in range(80)), echo={"delay_s": 0.05}, parallel={"max_shards": 4})
    )
    small = control.submit(**echo("small", echo={"delay_s": 1.5}))

    def running() -> bool:
        control.dispatcher.turn()
        entry = control.ledger.task(slow)
        return entry is not None and bool(control.fleet.running(str(entry.run_id)))

    until(running, "a shard is computed")
    control.fleet.engine.client.flushdb()
    found = control.await_end(slow, small, timeout_s=120)
    assert {each.state for each in found.values()} == {TaskState.DONE}
    assert outputs(slow) == [f"row {n}" for n in range(80)]
    assert outputs(small) == ["small"]


def test_cancelled_and_retried(control: Control) -> None:
    waiting = control.submit(**echo("never begun"))
    assert control.ledger.cancel([waiting]) == {waiting: TaskState.CANCELLED}
    with heard() as events:
        control.dispatcher.turn()
        control.dispatcher.turn()
    assert [each.type for each in events if each.task_id == waiting] == [
        TaskEventType.TASK_SUBMITTED,
        TaskEventType.TASK_CANCELLED,
    ]
    slow = control.submit(**echo(*(f"row {n}" for n in range(100)), echo={"delay_s": 0.1}))

    def running() -> bool:
        control.dispatcher.turn()
        entry = control.ledger.task(slow)
        return entry is not None and bool(control.fleet.running(str(entry.run_id)))

    until(running, "a shard is computed")
    control.ledger.cancel([slow])
    assert control.await_end(slow)[slow].state is TaskState.CANCELLED
    assert control.ledger.retry([waiting, slow]) == {waiting, slow}
    found = control.await_end(waiting, slow)
    assert {each.state for each in found.values()} == {TaskState.DONE}
    assert found[slow].runs == 2
    assert outputs(waiting) == ["never begun"]
    assert outputs(slow) == [f"row {n}" for n in range(100)]


def test_a_member_that_is_not_wanted_any_more_has_no_result(
    control: Control, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, unwanted = (control.submit(**echo(f"{n}", echo={"delay_s": 2})) for n in range(2))
    launcher = control.fleet.instance.run_launcher
    held: list[LaunchRunContext] = []
    with monkeypatch.context() as patch:
        patch.setattr(launcher, "launch_run", held.append)  # a quick worker would begin at once
        control.dispatcher.turn()
    assert control.ledger.cancel([unwanted])[unwanted] is TaskState.DISPATCHED
    (launch,) = held
    launcher.launch_run(launch)
    found = control.await_end(kept, unwanted)
    assert found[kept].state is TaskState.DONE
    assert found[unwanted].state is TaskState.CANCELLED
    assert not open_store().task(unwanted).exists("responses.json")


def test_a_batch_that_nobody_wants_is_stopped(control: Control) -> None:
    ids = [control.submit(**echo(f"{n}", echo={"delay_s": 60})) for n in range(2)]
    control.dispatcher.turn()
    control.ledger.cancel(ids)
    with heard() as events:
        found = control.await_end(*ids, timeout_s=30)
    assert {each.state for each in found.values()} == {TaskState.CANCELLED}
    assert sorted(ids) == sorted(
        each.task_id for each in events if each.type is TaskEventType.TASK_CANCELLED
    )
    (run_id,) = {str(each.run_id) for each in found.values()}
    assert control.fleet.await_end(run_id) is dg.DagsterRunStatus.CANCELED


def test_of_a_batch_that_fails_each_task_is_tried_alone(
    control: Control, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = [control.submit(**echo(f"{n}", echo={"delay_s": 0.02})) for n in range(3)]
    unwanted = control.submit(**echo("unwanted", echo={"delay_s": 0.02}))
    with monkeypatch.context() as patch:
        launcher = control.fleet.instance.run_launcher
        patch.setattr(launcher, "launch_run", lambda _: None)  # no worker is to see it
        control.dispatcher.turn()
    (run_id,) = {str(each.run_id) for each in control.ledger.tasks([*ids, unwanted]).values()}
    run = control.fleet.instance.get_run_by_id(run_id)
    assert run is not None
    control.fleet.instance.report_run_failed(run, "something broke it")
    control.ledger.cancel([unwanted])
    found = control.await_end(*ids, unwanted)
    assert {found[each].state for each in ids} == {TaskState.DONE}
    assert {found[each].runs for each in ids} == {2}
    assert len({found[each].run_id for each in ids}) == 3
    assert [outputs(each) for each in ids] == [["0"], ["1"], ["2"]]
    assert found[unwanted].state is TaskState.CANCELLED


def test_a_template_of_which_no_run_can_be_made_stops_no_other(
    control: Control, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = control.submit(
        metadata={"name": "broken"}, **echo("x", echo={"seed": 5, "poison": [9]})
    )
    fine = control.submit(metadata={"name": "fine"}, **echo("y", echo={"seed": 5, "poison": [9]}))
    real = launch_module.job_name

    def refuse(compiled: CompiledTemplate) -> str:
        if compiled.metadata.name == "broken":
            raise ValueError("Dagster does not like it")
        return real(compiled)

    monkeypatch.setattr(launch_module, "job_name", refuse)
    with heard() as events:
        found = control.await_end(broken, fine)
    assert found[fine].state is TaskState.DONE
    assert found[broken].state is TaskState.DEAD
    assert "Dagster does not like it" in found[broken].error
    (letter,) = [each for each in events if each.type is TaskEventType.TASK_DEAD_LETTERED]
    assert (letter.task_id, letter.error) == (broken, found[broken].error)
    monkeypatch.undo()
    control.ledger.retry([broken])
    assert control.await_end(broken)[broken].state is TaskState.DONE


def test_a_job_that_takes_long_to_build_holds_up_nobody_else(
    control: Control, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others are dispatched, cancelled and ended meanwhile; what is cancelled is not built."""
    real, built = launch_module._create_first, threading.Event()

    def slowly(*given: Any) -> dg.DagsterRun:
        assert built.wait(120)
        return real(*given)

    monkeypatch.setattr(launch_module, "_create_first", slowly)
    stages = [{"name": name, "spec": echo("a")["spec"]} for name in ("one", "two")]
    large = [control.submit(metadata={"name": f"large-{n}"}, spec={"stages": stages}) for n in "ab"]
    control.dispatcher.turn()
    first, second = ([f"{each}-one", f"{each}-two"] for each in large)
    small = control.submit(**echo("small", echo={"delay_s": 0.03}))
    assert control.await_end(small)[small].state is TaskState.DONE
    cancelled = control.ledger.cancel(second[:1])
    assert cancelled == {second[0]: TaskState.DISPATCHED}
    built.set()
    found = control.await_end(*first, *second)
    assert {found[each].state for each in first} == {TaskState.DONE}
    assert {found[each].state for each in second} == {TaskState.CANCELLED}
    assert control.fleet.instance.get_run_by_id(str(found[second[0]].run_id)) is None


@pytest.fixture
def rows(environment: dict[str, str]) -> Path:
    """A file that is not there yet, where templates over the API may name files."""
    folder = Path(environment["MLOC_API_DATA_ROOTS"], uuid.uuid4().hex)
    folder.mkdir(parents=True)
    return folder / "rows.jsonl"


def test_a_workflow_goes_on_where_it_failed(control: Control, rows: Path) -> None:
    late = {"data": {"type": "dataset", "url": str(rows), "column": "text"}}
    stages = [
        {"name": "first", "spec": echo("one")["spec"]},
        {"name": "second", "spec": {"taskType": "echo", **late}},
        {"name": "third", "spec": echo("${second.result.items[0].output}")["spec"]},
    ]
    workflow_id = control.submit(metadata={"name": "resumed"}, spec={"stages": stages})
    first, second, third = (f"{workflow_id}-{each}" for each in ("first", "second", "third"))
    found = control.await_end(first, second, third)
    assert [found[each].state for each in (first, second, third)] == [
        TaskState.DONE,
        TaskState.DEAD,
        TaskState.DEAD,
    ]
    assert "rows.jsonl" in found[second].error
    rows.write_text('{"text": "here now"}\n')
    control.ledger.retry([second])
    found = control.await_end(first, second, third)
    assert {each.state for each in found.values()} == {TaskState.DONE}
    assert (found[first].runs, found[second].runs) == (1, 2)
    assert outputs(third) == ["here now"]


def test_a_task_that_failed_is_at_work_until_its_run_has_ended(
    control: Control, rows: Path
) -> None:
    """Before, it is neither a dead letter nor can it be retried: nobody may take it for ended."""
    missing = {"type": "dataset", "url": str(rows), "column": "text"}
    gate = echo(*(f"row {n}" for n in range(30)), echo={"delay_s": 0.1})["spec"]
    nodes = [
        {"name": "failing", "spec": {"taskType": "echo", "data": missing}},
        {"name": "going-on", "spec": gate},
    ]
    workflow_id = control.submit(metadata={"name": "apart"}, spec={"graph": {"nodes": nodes}})
    failing, other = f"{workflow_id}-failing", f"{workflow_id}-going-on"

    def looked_at() -> dict[str, TaskEntry]:
        control.dispatcher.turn()
        return control.ledger.tasks([failing, other])

    found = until(lambda: (now := looked_at())[failing].error and now, "it has failed", 60)
    assert found[failing].state is TaskState.RUNNING
    assert "rows.jsonl" in found[failing].error
    assert not found[other].state.ended
    found = control.await_end(failing, other)
    assert found[failing].state is TaskState.DEAD
    assert found[other].state is TaskState.DONE


def test_a_run_that_somebody_starts_without_asking_the_ledger_is_the_tasks_newest(
    control: Control, rows: Path
) -> None:
    workflow_id = control.submit(
        metadata={"name": "by-hand"},
        spec={
            "taskType": "echo",
            "data": {"type": "dataset", "url": str(rows), "column": "text"},
        },
    )
    assert control.await_end(workflow_id)[workflow_id].state is TaskState.DEAD
    rows.write_text('{"text": "here now"}\n')
    run = retry_run(control.fleet.instance, workflow_id)
    control.fleet.instance.launch_run(run.run_id, workspace=None)  # type: ignore[arg-type]
    control.dispatcher = control.fresh()
    found = control.await_state(workflow_id, TaskState.DONE)
    assert (found.run_id, found.runs, found.error) == (run.run_id, 2, "")
    assert outputs(workflow_id) == ["here now"]


def library_run(instance: dg.DagsterInstance, **tags: str) -> dg.DagsterRun:
    """A run of the library's job `echo`, which nobody has begun."""
    job = JobsOfLibrary().job(LIBRARY, "echo")
    return instance.create_run_for_job(
        job, status=dg.DagsterRunStatus.NOT_STARTED, tags={**job.tags, **tags}
    )


def test_runs_that_the_api_did_not_make_are_in_the_ledger_with_what_made_them(
    control: Control,
) -> None:
    launched = launch_template(
        control.fleet.instance, compile_file(library_files()["core/echo"])[0]
    )
    (task_id,) = launched.task_ids
    found = control.await_state(task_id, TaskState.PENDING)
    assert (found.origin, found.task_type, found.run_id) == ("launch", "echo", launched.run_id)
    control.fleet.instance.launch_run(launched.run_id, workspace=None)  # type: ignore[arg-type]
    done = control.await_state(task_id, TaskState.DONE)
    assert done.rows_finished == 3
    scheduled = library_run(control.fleet.instance, **{"dagster/schedule_name": "nightly"})
    clicked = library_run(control.fleet.instance)
    entries = [control.await_state(each.run_id, TaskState.PENDING) for each in (scheduled, clicked)]
    assert [each.origin for each in entries] == ["schedule", "dagster"]
    for each in (scheduled, clicked):
        control.fleet.instance.report_run_canceled(each)
        control.await_state(each.run_id, TaskState.CANCELLED)


def test_a_run_that_another_process_carries_takes_no_slot_and_is_not_given_to_the_fleet(
    control: Control, monkeypatch: pytest.MonkeyPatch
) -> None:
    instance, engine = control.fleet.instance, control.fleet.engine
    monkeypatch.setenv("MLOC_RUN_SLOTS", "1")
    settings.cache_clear()
    run = library_run(instance, **{PROCESS_TAG: this_process()})
    instance.report_dagster_event(
        dg.DagsterEvent(dg.DagsterEventType.RUN_START.value, run.job_name), run_id=run.run_id
    )
    taken_in = control.await_state(run.run_id, TaskState.DISPATCHED)
    assert taken_in.origin == "run"
    workflow_id = control.submit(**echo("still", "done"))
    control.await_end(workflow_id)
    looks = 0

    def looked_twice() -> bool:
        nonlocal looks
        before = control.dispatcher._tickets_at
        control.dispatcher.turn()
        looks += control.dispatcher._tickets_at != before
        return looks > 2

    until(looked_twice, "the dispatcher has looked for lost runs", 60.0)
    ticket = run_ticket_id(run.run_id)
    assert engine.status([ticket])[ticket].state is TicketState.LOST
    instance.report_run_canceled(run)
    control.await_state(run.run_id, TaskState.CANCELLED)


def test_a_run_of_mloc_run_that_is_executed_again_in_the_ui_is_the_fleets(control: Control) -> None:
    gone = this_process().replace(f":{os.getpid()}:", ":999999999:")
    parent = library_run(control.fleet.instance, **{PROCESS_TAG: gone})
    control.await_state(parent.run_id, TaskState.CANCELLED)
    again = library_run(
        control.fleet.instance, **{PROCESS_TAG: gone, "dagster/parent_run_id": parent.run_id}
    )
    waiting = control.await_state(again.run_id, TaskState.PENDING)
    assert waiting.origin == "dagster"
    control.fleet.instance.report_run_canceled(again)
    control.await_state(again.run_id, TaskState.CANCELLED)


def test_a_task_whose_results_are_gone_is_not_taken_in_again(control: Control) -> None:
    instance = control.fleet.instance
    run = library_run(instance)
    instance.report_run_canceled(run)
    later = library_run(instance)
    control.await_state(later.run_id, TaskState.PENDING)
    assert control.ledger.task(run.run_id) is None
    instance.report_run_canceled(later)


def test_a_killed_dispatcher_is_followed_by_another_process(
    control: Control, environment: dict[str, str], tmp_path: Path
) -> None:
    """The ledger alone says what is to be done; no process knows anything that it may not lose."""

    def start(name: str) -> subprocess.Popen[bytes]:
        with (tmp_path / name).open("wb") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "mloc_dagster.cli", "dispatcher"],
                cwd=ROOT,
                env={**os.environ, **environment},
                stdout=log,
                stderr=log,
            )

    def states() -> dict[str, TaskEntry]:
        return control.ledger.tasks([*small, slow])

    processes = [start("first"), start("second")]
    try:
        slow = control.submit(
            **echo(
                *(f"row {n}" for n in range(40)), echo={"delay_s": 0.05, "seed": 1, "poison": [99]}
            )
        )
        small = [control.submit(**echo(f"{n}")) for n in range(10)]
        # A busy machine may have computed it before anybody looks at it.
        until(lambda: states()[slow].state in (TaskState.RUNNING, TaskState.DONE), "it runs")
        killed = processes.pop(0)
        killed.kill()
        killed.wait()
        more = [control.submit(**echo(f"{n}")) for n in range(10)]
        processes.append(start("third"))
        control.fleet.engine.client.flushdb()
        small += more
        until(
            lambda: {each.state for each in states().values()} == {TaskState.DONE},
            "all are done",
            120,
        )
        assert {each.runs for each in states().values()} == {1}
        assert outputs(slow) == [f"row {n}" for n in range(40)]
        for each in {str(entry.run_id) for entry in states().values()}:
            assert control.fleet.await_end(each) is dg.DagsterRunStatus.SUCCESS
            assert len(control.fleet.steps(each, dg.DagsterEventType.RUN_SUCCESS)) == 1
        leader = processes[0]
        leader.terminate()
        assert leader.wait(timeout=300) == 0
    finally:
        for each in processes:
            each.kill()
            each.wait()


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({"data": {"type": "dataset", "url": "SECRET"}}, "MLOC_API_DATA_ROOTS"),
        ({"data": {"type": "dataset", "url": "reference://x.txt::file://SECRET"}}, "chains"),
        (
            {"output": {"destination": {"headers": {"X": "${MLOC_POSTGRES_URL}"}}}},
            "MLOC_API_VARIABLES",
        ),
        ({"output": {"destination": {"url": "http://127.0.${SHLVL}.1/"}}}, "MLOC_API_VARIABLES"),
        ({"output": {"destination": {}}}, "MLOC_API_PRIVATE_ADDRESSES"),
    ],
)
def test_a_worker_checks_what_a_submitted_task_may_reach(
    control: Control, tmp_path: Path, spec: dict[str, Any], said: str
) -> None:
    """What no API has looked at is in the ledger here, as if its rules had been others."""
    secret = tmp_path / "secret.txt"
    secret.write_text("a line of the server")
    asked = json.loads(json.dumps(spec).replace("SECRET", str(secret)))
    with image_server() as receiver:
        if "output" in asked:
            there = {"type": "http", "url": f"{receiver.url}/hook", "max_attempts": 1}
            asked["output"]["destination"] = there | asked["output"]["destination"]
        task_id = control.submit(**echo("row") | {"spec": echo("row")["spec"] | asked})
        entry = control.await_state(task_id, TaskState.DEAD)
        assert not receiver.asked
    assert said in (entry.error or ""), entry
    for name in open_store().task(task_id).list(recursive=True):
        assert b"a line of the server" not in open_store().task(task_id).read_bytes(name)


def test_a_worker_starts_no_engine_with_arguments_that_name_code(control: Control) -> None:
    model = {
        "source": {"type": "builtin", "identifier": "tiny-chat"},
        "engine": "vllm",
        "vllm": {"scheduler_cls": "results.x.mod.X"},
    }
    data = {"type": "list", "items": ["hi"]}
    spec = {"taskType": "inference", "enforce_cpu": False, "model": model, "data": data}
    task_id = control.submit(kind="InferenceTask", metadata={"name": "code"}, spec=spec)
    entry = control.await_state(task_id, TaskState.DEAD)
    assert "MLOC_API_OPTIONS=model.vllm.scheduler_cls" in (entry.error or ""), entry


def test_a_file_for_a_running_small_task_is_refused_and_the_task_goes_on(
    control: Control,
) -> None:
    with served(create_app(control.ledger)) as url, httpx.Client(base_url=url) as client:
        task_id = control.submit(**echo("kept", echo={"delay_s": 1}))
        control.dispatcher.turn()
        files = f"/api/v1/results/{task_id}/files"
        for name in ("notes.txt", "responses.csv", "training.json"):
            assert client.post(files, files={"file": (name, b"forged")}).status_code == 409
        assert control.await_end(task_id)[task_id].state is TaskState.DONE
        assert outputs(task_id) == ["kept"]
        assert client.post(files, files={"file": ("responses.csv", b"x")}).status_code == 409
        assert client.post(files, files={"file": ("notes.txt", b"x")}).status_code == 201


def test_a_file_that_is_sent_along_is_what_the_task_reads(control: Control) -> None:
    text = json.dumps(
        {
            "apiVersion": "mloc/v1",
            "kind": "EchoTask",
            "metadata": {"name": "sent"},
            "spec": {"taskType": "echo", "data": {"type": "dataset", "url": "rows.txt"}},
        }
    )
    with served(create_app(control.ledger)) as url, httpx.Client(base_url=url) as client:

        def submit(rows: bytes) -> str:
            sent = [("template", ("t.yaml", text)), ("file", ("rows.txt", rows))]
            answer = client.post("/api/v1/tasks", files=sent)
            assert answer.status_code == 202, answer.text
            return answer.json()["tasks"][0]["task_id"]

        sound = submit(b"one\ntwo\n")
        assert control.await_end(sound)[sound].state is TaskState.DONE
        assert outputs(sound) == ["one", "two"]
        rows = b"three\n"
        changed = submit(rows)
        kept = Path(open_store().url, ".uploads", hashlib.sha256(rows).hexdigest(), "rows.txt")
        assert kept.read_bytes() == rows
        kept.write_bytes(b"forged\n")
        entry = control.await_end(changed)[changed]
        assert (entry.state, "no longer what was sent" in (entry.error or "")) == (
            TaskState.DEAD,
            True,
        )
