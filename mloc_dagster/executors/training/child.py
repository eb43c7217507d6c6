"""The process that trains: `python -m mloc_dagster.executors.training.child job.json`.

A trainer takes its own old checkpoints away, perhaps while the worker still copies one to the
store. So a sealed checkpoint is linked a second time, which takes no time and no space.
"""

from __future__ import annotations

import math
import os
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from mloc_dagster.errors import MlocError, TaskCancelled, TerminalError, TransientError
from mloc_dagster.executors.training.base import Hooks, Metrics
from mloc_dagster.executors.training.checkpoints import seal
from mloc_dagster.executors.training.messages import (
    LIFELINE_VARIABLE,
    PIPE_VARIABLE,
    Failed,
    LogLine,
    Message,
    Progress,
    Saved,
    TrainingJob,
    encode_line,
    finite,
)


def hand_over(job: TrainingJob, path: Path, step: int) -> Saved:
    """Seals a checkpoint whose files are all written, and links it into the job's outbox."""
    seal(path, step, {"task_id": job.task_id})
    target = job.outbox / path.name
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(path, target, copy_function=os.link)
    return Saved(str(target), step)


# What another attempt would only run into again.
_BUGS = (
    *(ImportError, NameError, AttributeError, TypeError, NotImplementedError, AssertionError),
    ValueError,  # how libraries refuse an option, some of them only in the first step
)


def main(path: Path) -> NoReturn:
    """Trains as the job's file says; exit code 0 if what there is to say was said."""
    job = TrainingJob.model_validate_json(path.read_bytes())
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    end_with_the_worker()
    say = _channel()
    hooks = hooks_for(job, say, stop.is_set)
    sys.exit(0 if run(job, hooks, say) else 1)


def run(job: TrainingJob, hooks: Hooks, say: Callable[[Message], None]) -> bool:
    """Trains and says how it ended; returns whether the training is done."""
    from mloc_dagster.executors.training.session import train

    try:
        say(train(job, hooks, say))
    except TaskCancelled:
        return True  # the worker, which asked for it, needs no word
    except MlocError as error:
        say(Failed(type(error).__name__, str(error), time.monotonic()))
        return False
    except Exception as error:  # noqa: BLE001  told to the worker, whatever it is
        traceback.print_exc()  # into the file of what the process prints
        # The hub's errors are often both, and a network may be back by the next attempt.
        bug = isinstance(error, _BUGS) and not isinstance(error, OSError)
        kind = TerminalError if bug else TransientError
        message = f"the training failed: {type(error).__name__}: {error}"
        say(Failed(kind.__name__, message, time.monotonic()))
        return False
    return True


def hooks_for(
    job: TrainingJob, say: Callable[[Message], None], cancelled: Callable[[], bool]
) -> Hooks:
    """Returns hooks that tell the worker."""

    def progress(step: int, total: int, metrics: Metrics) -> None:
        if not math.isfinite(metrics.get("loss", 0.0)):
            raise TerminalError(
                f"the loss of step {step} is {metrics['loss']}: training.learning_rate "
                "may be too high, or fp16 too narrow"
            )
        say(Progress(step, total, finite(metrics)))

    return Hooks(
        progress=progress,
        log=lambda text: say(LogLine(text)),
        cancelled=cancelled,
        checkpoint=lambda path, step: say(hand_over(job, path, step)),
    )


def end_with_the_worker() -> None:
    """Ends this process as soon as the worker that started it is gone."""
    given = os.environ.get(LIFELINE_VARIABLE)
    if given is None:
        return

    def watch() -> None:
        os.read(int(given), 1)  # returns when the worker's end closes
        os._exit(1)

    threading.Thread(target=watch, name="lifeline", daemon=True).start()


def _channel() -> Callable[[Message], None]:
    """Returns what sends a message; processes of a rank above 0 say only that they failed."""
    given = os.environ.get(PIPE_VARIABLE)
    if given is None:
        return lambda _: None
    pipe, lock = int(given), threading.Lock()
    first = os.environ.get("RANK", "0") == "0"

    def say(message: Message) -> None:
        if not first and not isinstance(message, Failed):
            return
        line = memoryview(encode_line(message))
        with lock:
            while line:
                line = line[os.write(pipe, line) :]

    return say


if __name__ == "__main__":
    main(Path(sys.argv[1]))
