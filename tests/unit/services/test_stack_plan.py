"""What a stack is made of: addresses, generated files, and their secrets."""

from __future__ import annotations

import configparser
import os
import socket
from pathlib import Path

import pytest
import yaml
from dagster._core.instance.config import dagster_instance_config

from mloc_dagster.cli.up_command import share_gpus
from mloc_dagster.errors import InputError
from mloc_dagster.home import StackLayout
from mloc_dagster.services.redis import redis_executable, write_redis_config
from mloc_dagster.services.stack.dagster_home import write_dagster_home
from mloc_dagster.services.stack.plan import (
    StackPlan,
    addresses,
    make_plan,
    masked,
    password_in,
    saved_plan,
)
from mloc_dagster.services.stack.supervisor_config import supervisor_config
from mloc_dagster.settings import Settings
from tests.ports import free_port


@pytest.fixture
def layout(tmp_path: Path) -> StackLayout:
    created = StackLayout(tmp_path / "home")
    created.create()
    return created


def _plan(layout: StackLayout, workers: int = 2, **settings: object) -> StackPlan:
    ports = {"webserver_port": free_port(), "api_port": free_port()}
    chosen = Settings.model_validate({**ports, **settings})
    return make_plan(layout, chosen, worker_gpus=[None] * workers, run_workers=1)


def _config(plan: StackPlan, cores: int = 8) -> configparser.RawConfigParser:
    parser = configparser.RawConfigParser()
    parser.read_string(supervisor_config(plan, drain_grace_s=10, cores=cores))
    return parser


def test_each_component_is_a_program_with_a_rotating_log(layout: StackLayout) -> None:
    plan = _plan(layout)
    config = _config(plan)
    programs = [name.removeprefix("program:") for name in config.sections() if "program:" in name]
    assert tuple(programs) == plan.components()
    assert programs[:5] == ["redis", "postgres", "code", "webserver", "daemon"]
    assert programs[5:] == ["dispatcher", "api", "runs-1", "worker-1", "worker-2"]
    for name in programs:
        program = config[f"program:{name}"]
        assert program["stdout_logfile"] == str(layout.logs / f"{name}.log")
        assert program["stdout_logfile_maxbytes"] == "5MB"
        assert program["stdout_logfile_backups"] == "5"
        assert program["autorestart"] == "true"
    groups = [config[each] for each in config.sections() if each.startswith("group:")]
    order = sorted(groups, key=lambda each: int(each["priority"]))
    # All of a group stop at once: whoever needs the databases before these.
    assert [each["programs"] for each in order] == [
        "redis,postgres",
        "code,webserver,daemon,dispatcher,api,runs-1,worker-1,worker-2",
    ]


def test_workers_have_the_time_to_hand_back_and_nobody_waits_for_dagsters_servers(
    layout: StackLayout,
) -> None:
    config = _config(_plan(layout))
    patience = {
        name.removeprefix("program:"): int(config[name]["stopwaitsecs"])
        for name in config.sections()
        if name.startswith("program:")
    }
    assert max(patience[name] for name in ("code", "webserver", "daemon")) <= 5
    assert min(patience[name] for name in ("runs-1", "worker-1")) >= 10 + 30


def test_workers_share_the_cores_and_have_names(
    layout: StackLayout, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("MLOC_MACHINE_SHARE", raising=False)
    config = _config(_plan(layout, worker_name="box 7"))
    second = config["program:worker-2"]["environment"]
    assert 'MLOC_WORKER_NAME="box-7-2"' in second
    assert 'OMP_NUM_THREADS="4"' in second
    assert 'MLOC_MACHINE_SHARE="2"' in second
    assert "OMP_NUM_THREADS" not in config["program:runs-1"]["environment"]
    assert 'OMP_NUM_THREADS="1"' in _config(_plan(layout), cores=1)["program:worker-1"].get(
        "environment", ""
    )


def test_a_worker_of_its_own_gpus_sees_no_others(layout: StackLayout) -> None:
    plan = _plan(layout).model_copy(update={"worker_gpus": ("0,1", "2,3")})
    assert 'CUDA_VISIBLE_DEVICES="2,3"' in _config(plan)["program:worker-2"]["environment"]


@pytest.mark.parametrize(
    ("gpus", "workers", "seen"),
    [
        ([], None, [None]),
        ([], 2, [None, None]),
        ([0, 1], None, ["0", "1", ""]),
        ([0, 1], 2, ["0", "1"]),
        ([0, 1, 2, 3], 2, ["0,1", "2,3"]),
        ([3], 3, ["3", "", ""]),
    ],
)
def test_no_two_workers_see_the_same_gpu(
    gpus: list[int], workers: int | None, seen: list[str | None]
) -> None:
    assert share_gpus(gpus, workers) == seen


def test_given_urls_leave_the_embedded_servers_out(layout: StackLayout) -> None:
    plan = _plan(
        layout,
        workers=0,
        redis_url="redis://:secret@elsewhere:6379/0",
        postgres_url="postgresql://mloc:secret@elsewhere/mloc",
    )
    assert plan.components() == ("code", "webserver", "daemon", "dispatcher", "api", "runs-1")
    assert plan.redis_url == "redis://:secret@elsewhere:6379/0"
    assert addresses(plan)["Redis"] == "redis://:***@elsewhere:6379/0"
    assert addresses(plan)["PostgreSQL"] == "postgresql://mloc:***@elsewhere/mloc"


def test_secrets_are_in_private_files_and_the_environment_only(layout: StackLayout) -> None:
    plan = _plan(layout)
    password = password_in(layout.password)
    plan.save()
    conf = write_redis_config(
        layout.redis,
        host="127.0.0.1",
        port=1,
        password=password,
        worker_password=password_in(layout.worker_password),
    )
    for path in (layout.password, layout.plan, conf):
        assert password in path.read_text()
        assert path.stat().st_mode & 0o077 == 0
    assert layout.supervisor.stat().st_mode & 0o077 == 0
    assert password not in supervisor_config(plan, drain_grace_s=10, cores=2)
    assert masked("redis://127.0.0.1:1/0") == "redis://127.0.0.1:1/0"


def test_the_environment_depends_on_no_working_directory(
    layout: StackLayout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    plan = _plan(layout)
    monkeypatch.setenv("MLOC_RESULTS_URL", "out")
    environment = plan.environment({"PATH": "/bin", "DAGSTER_HOME": "/elsewhere"}, Settings())
    # Whoever needs more than a worker's rights asks for them.
    assert environment["MLOC_REDIS_URL"] == plan.worker_redis_url
    assert environment["MLOC_POSTGRES_URL"] == plan.worker_postgres_url
    assert plan.redis_url not in environment.values()
    assert plan.postgres_url not in environment.values()
    assert environment["PATH"] == "/bin"
    assert environment["DAGSTER_HOME"] == str(layout.dagster_home)
    assert environment["MLOC_HOME"] == environment["MLOC_STACK"] == str(layout.home)
    assert environment["MLOC_RESULTS_URL"] == str(tmp_path / "out")
    assert environment["MLOC_API_URL"] == plan.api_url
    monkeypatch.setenv("MLOC_RESULTS_URL", "s3://bucket/prefix")
    remote = plan.environment({"MLOC_API_URL": "https://mloc.example.org"}, Settings())
    assert remote["MLOC_API_URL"] == "https://mloc.example.org"
    assert remote["MLOC_RESULTS_URL"] == "s3://bucket/prefix"


def test_ports_stay_those_of_last_time(layout: StackLayout) -> None:
    first = _plan(layout)
    first.save()
    assert saved_plan(layout) == first
    second = _plan(layout)
    assert (second.redis_url, second.postgres_url) == (first.redis_url, first.postgres_url)
    assert first.redis_port is not None
    with socket.create_server(("127.0.0.1", first.redis_port)):
        assert _plan(layout).redis_port != first.redis_port
    wanted = free_port()
    assert _plan(layout, redis_port=wanted).redis_port == wanted


def test_no_outgoing_connection_takes_the_port_of_a_server_that_is_restarted(
    layout: StackLayout,
) -> None:
    for _ in range(20):
        plan = _plan(layout)
        assert plan.redis_port in range(20_000, 32_768)
        assert plan.postgres_port in range(20_000, 32_768)
        assert plan.redis_port != plan.postgres_port


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("webserver_port", "--port, or MLOC_WEBSERVER_PORT"),
        ("redis_port", "MLOC_REDIS_PORT"),
        ("postgres_port", "MLOC_POSTGRES_PORT"),
    ],
)
def test_a_taken_port_names_itself_its_owner_and_the_way_out(
    layout: StackLayout, setting: str, says: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(InputError) as error:
            _plan(layout, **{setting: port})
    assert f"port {port} is taken by " in str(error.value)
    assert f"(pid {os.getpid()})" in str(error.value)
    assert says in str(error.value)


def test_every_address_of_this_machine_is_reached_at_loopback(layout: StackLayout) -> None:
    plan = _plan(layout, bind_host="0.0.0.0", webserver_host="0.0.0.0")
    assert plan.webserver_url == f"http://127.0.0.1:{plan.webserver_port}"
    assert f"@127.0.0.1:{plan.redis_port}" in plan.redis_url


def test_a_long_home_keeps_its_sockets_elsewhere(tmp_path: Path) -> None:
    deep = StackLayout(tmp_path / ("deep" * 20))
    deep.create()
    path = deep.socket("code.sock")
    assert len(str(path)) < 100
    assert path.parent.stat().st_mode & 0o077 == 0
    assert path != StackLayout(tmp_path / ("leep" * 20)).socket("code.sock")
    path.parent.rmdir()


@pytest.mark.parametrize("length", range(60, 100))
def test_a_socket_has_a_folder_however_long_the_home(tmp_path: Path, length: int) -> None:
    layout = StackLayout(tmp_path / ("h" * max(1, length - len(str(tmp_path)) - 1)))
    layout.create()
    for name in ("rpc.sock", "code.sock"):
        path = layout.socket(name)
        assert path.parent.is_dir()
        assert len(str(path)) + len(".1234567") <= 107
    if layout.socket("rpc.sock").parent != layout.supervisor:
        layout.socket("rpc.sock").parent.rmdir()


def test_dagster_understands_its_generated_configuration(layout: StackLayout) -> None:
    write_dagster_home(_plan(layout))
    folder = str(layout.dagster_home)
    config, _ = dagster_instance_config(folder)
    assert config["run_launcher"]["class"] == "FleetRunLauncher"
    assert config["run_monitoring"]["max_resume_run_attempts"] == 1000
    for name, locations in (("workspace.yaml", 2), ("daemon.yaml", 1)):
        workspace = yaml.safe_load((layout.dagster_home / name).read_text())
        server = workspace["load_from"][0]["grpc_server"]
        assert server["socket"] == str(layout.socket("code.sock"))
        assert len(workspace["load_from"]) == locations


def test_the_embedded_redis_is_there() -> None:
    assert os.access(redis_executable(), os.X_OK)
