"""What vLLM finds around it: variables, logging and torch's threads.

All of it is set when a model is loaded, never at import, and what the user has set stays.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from mloc_dagster.executors.engine_choice import vllm_build
from mloc_dagster.settings import settings

QUIET = "ERROR"
"""vLLM's log level unless the user sets one: it warns of a dozen things that are on purpose."""

SMALL_WEIGHTS_BYTES = 64 << 20
"""Below this a second thread costs more than it brings."""

# The first prints pages when an engine breaks down; mloc says in one line what it does about it.
_TALKATIVE = ("vllm.logging_utils.dump_input", "torch.utils.cpp_extension")


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
