"""Every error mloc raises on purpose.

    MlocError
    ├── InputError                 the user can mend it: exit code 2, HTTP 422
    │   ├── TemplateError          a template is wrong; carries every diagnostic of every file
    │   ├── DataError              an input file, split, column or row is missing or unreadable
    │   └── UnknownNameError       a name nobody registered; carries the nearest known one
    ├── TransientError             trying again can help (network, a device that was busy)
    │   ├── FleetUnavailableError  the fleet's engine cannot be reached, or refuses
    │   └── NoRoomError            perhaps the memory was taken: models that idle are to make room
    ├── TerminalError              trying again cannot help
    │   ├── MissingExtraError      an optional dependency is not installed
    │   ├── IncompleteResultsError shards or rows do not add up to the plan
    │   │   └── DamagedFileError   a file of a task is not what was written
    │   ├── RowBudgetError         more rows failed than the error budget allows
    │   └── DeliveryError          the receiver refused the results, or stayed unreachable
    └── TaskCancelled              somebody asked for it to stop; finished rows are kept

``retryable`` on the class says if an automatic retry may help; nothing else decides that.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import ClassVar, Protocol

from mloc_dagster.redaction import redact_urls

NOT_A_FILE = "is a pipe or a device; name a regular file"
"""What is said of an address that may never come to an end."""


class MlocError(Exception):
    """Root of the tree above.

    Args:
        args: What went wrong, in one text; credentials in its URLs are masked, as it goes to logs,
            events and whoever asks for the task.
    """

    retryable: ClassVar[bool] = False

    def __init__(self, *args: object) -> None:
        super().__init__(*(redact_urls(each) if isinstance(each, str) else each for each in args))


class InputError(MlocError):
    """Something the user wrote or named is wrong."""


class Diagnostic(Protocol):
    """What `TemplateError` needs to know of a finding (see `compile.diagnostics`)."""

    def __str__(self) -> str: ...


class TemplateError(InputError):
    """One or more templates are invalid.

    Args:
        diagnostics: Every finding, in file order; each prints as `file:line:col: path: message`.
    """

    def __init__(self, diagnostics: Sequence[Diagnostic]) -> None:
        self.diagnostics = tuple(diagnostics)
        super().__init__("\n".join(str(finding) for finding in self.diagnostics))


class DataError(InputError):
    """Input data is missing or cannot be read; the message names what exists instead.

    Args:
        message: What is wrong.
        field: The field of the `data` block that is to be mended, where it is known.
    """

    def __init__(self, message: str, field: str | None = None) -> None:
        self.field = field
        super().__init__(message)


class UnknownNameError(InputError):
    """A name that nobody registered.

    Args:
        kind: What was named, in the user's words: "builtin model", "task type", "template".
        value: The name as given.
        known: All names that would have worked.
    """

    def __init__(self, kind: str, value: str, known: Iterable[str]) -> None:
        self.kind = kind
        self.value = value
        self.known = tuple(sorted(known))
        super().__init__(f"unknown {kind} {value!r}{nearest_hint(value, self.known)}")


class TransientError(MlocError):
    """A failure that a retry may cure."""

    retryable = True


class FleetUnavailableError(TransientError):
    """The fleet's engine cannot be reached, or refuses what it is asked for.

    Args:
        message: What is wrong.
        reply: What the engine answered; empty if it did not answer.
    """

    def __init__(self, message: str, reply: str = "") -> None:
        self.reply = reply
        super().__init__(message)


class NoRoomError(TransientError, MemoryError):
    """A model did not load, and a want of memory may be why: its process did not say."""


class TerminalError(MlocError):
    """A failure that a retry would only repeat."""


class MissingExtraError(TerminalError):
    """An optional dependency is not installed.

    Args:
        feature: What the user asked for.
        extra: The extra of `mloc-dagster` that brings it.
    """

    def __init__(self, feature: str, extra: str) -> None:
        super().__init__(
            f"{feature} needs the extra {extra!r}: pip install 'mloc-dagster[{extra}]'"
        )


class IncompleteResultsError(TerminalError):
    """What the shards left behind does not add up to the plan."""


class DamagedFileError(IncompleteResultsError):
    """A file of a task is not what was written."""


class RowBudgetError(TerminalError):
    """More rows ended with an error than the task allows."""


class DeliveryError(TerminalError):
    """Results are complete on the store, but could not be handed to their destination."""


class TaskCancelled(MlocError):
    """The task was asked to stop."""


def nearest_hint(value: str, known: Iterable[str]) -> str:
    """Returns `"; did you mean 'x'?"`, or the list of known names when none is near."""
    names = sorted(known)
    lowered = {name.lower(): name for name in names}
    close = difflib.get_close_matches(value.lower(), list(lowered), n=1, cutoff=0.6)
    if close:
        return f"; did you mean {lowered[close[0]]!r}?"
    if not names:
        return ""
    listed = ", ".join(repr(name) for name in names[:12])
    return f"; known: {listed}" + (" …" if len(names) > 12 else "")
