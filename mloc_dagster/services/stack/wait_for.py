"""Becomes a command once what it needs answers: `python -m … redis postgres -- COMMAND…`.

With `--owner` first the command reaches the databases as their owner; without it as workers do,
and so does the environment that it is started with.

The supervisor starts everything at once and starts again whatever dies. A component that comes
back before its Redis or its PostgreSQL waits here instead of failing over and over.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence

from mloc_dagster.errors import InputError, TransientError
from mloc_dagster.home import stack_layout
from mloc_dagster.services.stack.answers import (
    check_postgres,
    check_redis,
    code_answers,
    postgres_answers,
    redis_answers,
    tables_answer,
)
from mloc_dagster.services.stack.plan import saved_plan
from mloc_dagster.settings import settings

_LOOK_EVERY_S = 0.2
_SAY_EVERY_S = 10.0

# Dagster's UI and daemon work without the code server, and say so where a person looks.
_CODE_PATIENCE_S = 60.0

_DATABASE = {"postgres": postgres_answers, "tables": tables_answer}


def main(arguments: Sequence[str]) -> None:
    """Waits, then replaces this process by the command.

    Args:
        arguments: As `awaited_command` takes them.
    """
    command = awaited_command(arguments)
    os.execvp(command[0], list(command))  # noqa: S606 (the supervisor's own command)


def awaited_command(arguments: Sequence[str]) -> Sequence[str]:
    """Waits for what a command needs, and returns it.

    Args:
        arguments: Perhaps `--owner`; any of `redis`, `postgres`, `tables` and `code`; `--`; the
            command.
    """
    if arguments[0] == "--owner":
        arguments = arguments[1:]
        plan = saved_plan(stack_layout())
        if plan is None:
            raise FileNotFoundError(stack_layout().plan)
        os.environ.update(plan.owner_environment())
        settings.cache_clear()
    border = arguments.index("--")
    for name in arguments[:border]:
        _wait(name)
    return arguments[border + 1 :]


def _wait(name: str) -> None:
    started = said = time.monotonic()
    answers = _check(name)
    while not answers():
        now = time.monotonic()
        if name == "code" and now - started > _CODE_PATIENCE_S:
            _say("going on without the code server")
            return
        if now - said > _SAY_EVERY_S:
            said = now
            _say(f"waiting for {name}{_refusal(name)}")
        time.sleep(_LOOK_EVERY_S)


def _check(name: str) -> Callable[[], bool]:
    known = settings()
    if name == "redis" and known.redis_url is not None:
        url = known.redis_url
        return lambda: redis_answers(url)
    if name in _DATABASE and known.postgres_url is not None:
        database, answers = known.postgres_url, _DATABASE[name]
        return lambda: answers(database)
    if name == "code":
        socket = stack_layout().socket("code.sock")
        return lambda: code_answers(socket)
    raise ValueError(f"nothing known to wait for: {name}")


def _refusal(name: str) -> str:
    """Returns what a database says that answers and refuses its user; '' of any other one."""
    known = settings()
    try:
        if name == "redis" and known.redis_url is not None:
            check_redis(known.redis_url)
        if name in _DATABASE and known.postgres_url is not None:
            check_postgres(known.postgres_url)
    except InputError as error:
        return f": {error}"
    except TransientError:
        return ""
    return ""


def _say(message: str) -> None:
    sys.stderr.write(f"{message}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
