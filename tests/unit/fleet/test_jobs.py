"""Jobs that stay loaded in a worker, and the executor that each of them has by default."""

import os
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster import DagsterRun
from dagster._core.code_pointer import ModuleCodePointer
from dagster._core.definitions.reconstruct import ReconstructableRepository

from mloc_dagster.compile import compile_mapping
from mloc_dagster.errors import TerminalError
from mloc_dagster.fleet.dagster.executor import execution_config, mloc_executor
from mloc_dagster.fleet.dagster.jobs import LIBRARY, Jobs, job_origin
from mloc_dagster.fleet.dagster.run_launcher import carries_itself
from mloc_dagster.recent_templates import remember_template
from mloc_dagster.settings import settings

TEMPLATE = """
apiVersion: mloc/v1
kind: EchoTask
metadata: {{name: {name}, annotations: {{description: {description}}}}}
spec:
  data: {{type: list, items: [one]}}
"""

STAGES = """
apiVersion: mloc/v1
kind: EchoTask
metadata: {name: stages}
spec:
  stages:
    - {name: one, spec: {data: {type: list, items: [one]}}}
    - {name: two, spec: {data: {type: upstream, node: one, text: "{output}"}}}
"""


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "templates"
    folder.mkdir()
    monkeypatch.setenv("MLOC_TEMPLATES_DIR", str(folder))
    settings.cache_clear()
    write(folder, "first", "as it was")
    return folder


def write(folder: Path, name: str, description: str) -> None:
    """Writes a template as an editor does that somebody saves a second later."""
    path = folder / f"{name}.yaml"
    before = path.stat().st_mtime if path.exists() else 0.0
    path.write_text(TEMPLATE.format(name=name, description=description))
    os.utime(path, (before + 1, before + 1))


def run_of(job: str, pointer: ModuleCodePointer = LIBRARY, **fields: object) -> DagsterRun:
    origin = ReconstructableRepository(pointer).get_python_origin()
    job_origin = dg._core.origin.JobPythonOrigin(job, origin)
    return DagsterRun(job_name=job, job_code_origin=job_origin, **fields)  # type: ignore[arg-type]


def test_a_job_is_built_once(library: Path) -> None:
    jobs = Jobs()
    jobs.preload(LIBRARY)
    first = jobs.job_of(run_of("first")).get_definition()
    assert jobs.job_of(run_of("first")).get_definition() is first
    assert first.description == "as it was"


def test_an_edited_template_is_a_new_job(library: Path) -> None:
    jobs = Jobs()
    assert jobs.job_of(run_of("first")).get_definition().description == "as it was"
    write(library, "first", "as it is")
    assert jobs.job_of(run_of("first")).get_definition().description == "as it is"
    write(library, "second", "new")
    assert jobs.job_of(run_of("second")).get_definition().description == "new"
    spec: dict[str, Any] = {"data": {"type": "list", "items": ["a"]}}
    document: dict[str, Any] = {
        "apiVersion": "mloc/v1",
        "kind": "EchoTask",
        "metadata": {"name": "own"},
    }
    remember_template(compile_mapping({**document, "spec": spec}))
    assert jobs.job_of(run_of("own")).get_definition().name == "own"


def test_a_run_that_no_other_process_finds_the_code_of_is_none_of_the_fleets() -> None:
    origin = job_origin("first")
    assert carries_itself(DagsterRun(job_name="first"))
    assert carries_itself(DagsterRun(job_name="first", remote_job_origin=origin))
    assert not carries_itself(run_of("first", remote_job_origin=origin))


def test_a_run_of_some_assets_gets_a_job_of_its_own(library: Path) -> None:
    (library / "stages.yaml").write_text(STAGES)
    jobs = Jobs()
    whole = jobs.job_of(run_of("stages")).get_definition()
    selected = frozenset({dg.AssetKey(["stages", "one_responses"])})
    part = jobs.job_of(run_of("stages", asset_selection=selected)).get_definition()
    assert len(part.nodes) < len(whole.nodes)
    assert jobs.job_of(run_of("stages", asset_selection=selected)).get_definition() is part


def test_a_run_that_does_not_say_where_its_code_is_cannot_be_run() -> None:
    with pytest.raises(TerminalError, match="does not say where its code is"):
        Jobs().job_of(DagsterRun(job_name="first"))


@dg.op
def hello() -> None:
    """Nothing to do."""


@dg.job(executor_def=mloc_executor())
def greet() -> None:
    hello()


def with_redis(monkeypatch: pytest.MonkeyPatch, url: str | None) -> None:
    if url is None:
        monkeypatch.delenv("MLOC_REDIS_URL", raising=False)
    else:
        monkeypatch.setenv("MLOC_REDIS_URL", url)
    settings.cache_clear()


def default_of(executor: dg.ExecutorDefinition) -> object:
    return executor.config_schema.default_value


def test_without_redis_a_job_runs_in_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    with_redis(monkeypatch, None)
    assert execution_config()["execution"] == {"config": {"in_process": {}}}
    assert default_of(mloc_executor()) == {"in_process": {}}


def test_with_redis_a_job_runs_on_the_fleet(monkeypatch: pytest.MonkeyPatch) -> None:
    with_redis(monkeypatch, "redis://127.0.0.1:1/0")
    assert execution_config()["execution"] == {"config": {"fleet": {}}}
    assert default_of(mloc_executor()) == {"fleet": {}}


@pytest.mark.parametrize("redis", [None, "redis://127.0.0.1:1/0"])
@pytest.mark.parametrize(
    ("config", "name"),
    [
        ({"in_process": {}}, "InProcessExecutor"),
        ({"multiprocess": {"max_concurrent": 2}}, "MultiprocessExecutor"),
    ],
)
def test_a_launch_may_choose_one_of_dagsters_executors(
    config: dict[str, object], name: str, redis: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_redis(monkeypatch, redis)
    chosen = dg.validate_run_config(greet, {"execution": {"config": config}})
    (selected,) = chosen["execution"].values()
    known = dg._core.executor.init.InitExecutorContext(
        job=dg._core.definitions.job_base.InMemoryJob(greet),
        executor_def=mloc_executor(),
        executor_config=selected.get("config", selected),
        instance=dg.DagsterInstance.ephemeral(),
    )
    create = mloc_executor().executor_creation_fn
    assert create is not None
    assert type(create(known)).__name__ == name


def test_a_run_in_process_needs_no_fleet(monkeypatch: pytest.MonkeyPatch) -> None:
    with_redis(monkeypatch, "redis://127.0.0.1:1/0")
    config = {"execution": {"config": {"in_process": {}}}}
    with dg.DagsterInstance.local_temp() as instance:
        assert dg.execute_job(dg.reconstructable(greet), instance, run_config=config).success
