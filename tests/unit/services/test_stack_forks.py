"""Components as forks: what a fork runs is what a process of its own would run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from mloc_dagster.services.stack import forks

_FORK = """
import os, sys
from mloc_dagster.services.stack import forks

forks.load()
threads = len(os.listdir("/proc/self/task"))
assert threads == 1, f"a fork has one thread of {threads}"
assert not {"numpy", "pyarrow", "torch"} & set(sys.modules)
pid = os.fork()
if pid == 0:
    environment = {**os.environ, "SAID": "hello", "SUPERVISOR_PROCESS_NAME": "api"}
    command = [sys.executable, "-m", *sys.argv[1:]]
    awaited = [sys.executable, "-m", "mloc_dagster.services.stack.wait_for", "--", *command]
    assert forks.is_fork(awaited)
    forks.become(awaited, environment)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""
_LOADED = """
import sys
from mloc_dagster.services.stack import forks

forks.load()
from mloc_dagster.definitions import defs

assert defs().assets
heavy = {"numpy", "pyarrow", "torch", "transformers", "pydantic_ai", "openai", "mcp"}
print(sorted(heavy & set(sys.modules)))
"""

_MODULE = """
import atexit, os, signal, sys, threading
from multiprocessing import get_context
from pathlib import Path

def answer():
    return 42

if __name__ == "__main__":
    atexit.register(lambda: print("left"))
    print(os.environ["SAID"], Path(sys.argv[0]).name, *sys.argv[1:])
    print(Path("/proc/self/comm").read_text().strip())
    print(signal.getsignal(signal.SIGTERM) is signal.SIG_DFL)
    with get_context("spawn").Pool(1) as pool:
        print(pool.apply(answer))
    threading.Thread(target=lambda: print("waited for")).start()
    END
"""


@pytest.mark.parametrize(
    ("end", "code", "said"),
    [
        ("sys.exit(3)", 3, ""),
        ("sys.exit('no')", 1, "no"),
        ("pass", 0, ""),
        ("raise ValueError('bad')", 1, "ValueError: bad"),
    ],
)
def test_a_fork_runs_a_module_to_its_end(tmp_path: Path, end: str, code: int, said: str) -> None:
    (tmp_path / "part.py").write_text(_MODULE.replace("END", end))
    done = subprocess.run(
        [sys.executable, "-c", _FORK, "part", "--port", "1"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, done.stderr
    lines = ["hello part.py --port 1", "mloc-api", "True", "42", "waited for", "left"]
    assert done.stdout.splitlines() == lines
    assert said in done.stderr


def test_databases_wait_for_no_imports() -> None:
    assert not forks.is_fork(["/usr/bin/redis-server", "redis.conf"])
    assert not forks.is_fork([sys.executable, "-m", "mloc_dagster.services.postgres_server"])


def test_what_builds_the_jobs_loads_no_library_of_models() -> None:
    # Every worker, the code server and each run's process do this before anything else.
    done = subprocess.run(
        [sys.executable, "-c", _LOADED], capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "[]", done.stdout + done.stderr
