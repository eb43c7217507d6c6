"""From arguments to an exit code; what goes wrong becomes one message."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence

from mloc_dagster.cli.terminal import BAD_INPUT, DEBUG, FAILED, INTERRUPTED, OK, debugging
from mloc_dagster.errors import InputError, MlocError, TemplateError


def run(arguments: Sequence[str], *, keep_private: bool = False) -> int:
    """Runs one command.

    Args:
        arguments: Of the command line.
        keep_private: Whether what this process writes is only for those whom `MLOC_UMASK` lets in;
            what it starts inherits this.

    Returns:
        Its exit code, as `cli.terminal` has them.
    """
    try:
        return _invoke(arguments, keep_private=keep_private)
    except BrokenPipeError:
        # Whoever read our output has seen enough (`| head`); Python would complain at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return FAILED
    except KeyboardInterrupt:
        _say("interrupted")
        return INTERRUPTED
    except MlocError as error:
        if debugging():
            traceback.print_exc()
        _say(_message(error))
        return BAD_INPUT if isinstance(error, InputError) else FAILED
    except Exception as error:  # noqa: BLE001 - the last line before a traceback
        if debugging():
            traceback.print_exc()
        _say(f"{type(error).__name__}: {error}\n(a fault of mloc; {DEBUG}=1 shows where)")
        return FAILED


def _invoke(arguments: Sequence[str], *, keep_private: bool) -> int:
    from typer import Abort, Exit
    from typer.main import get_command

    from mloc_dagster.cli.app import app

    command = get_command(app)
    try:
        code = command.main(
            list(arguments), prog_name="mloc", standalone_mode=False, obj=keep_private
        )
    except Exit as left:
        return left.exit_code
    except Abort:
        return INTERRUPTED
    except Exception as error:
        show, code = getattr(error, "show", None), getattr(error, "exit_code", None)
        if show is None or code is None:
            raise
        show()  # a usage error of the command line itself
        return int(code)
    finally:
        sys.stdout.flush()
    return code if isinstance(code, int) else OK


def _message(error: MlocError) -> str:
    if isinstance(error, TemplateError):
        count = len(error.diagnostics)
        return f"{error}\n{count} error{'s' if count != 1 else ''} in the template"
    return str(error)


def _say(message: str) -> None:
    sys.stderr.write(f"mloc: {message}\n" if "\n" not in message else f"{message}\n")
