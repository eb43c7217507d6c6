"""What is wrong with a template, and where."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Literal

from pydantic import JsonValue

from mloc_dagster.compile.tree import Path, Position, Tree, format_path
from mloc_dagster.errors import TemplateError

Severity = Literal["error", "warning"]


@dataclass(frozen=True, slots=True)
class Diagnostic:
    """One finding.

    Attributes:
        file: The file as it was named.
        line: Line, from 1; 0 when the finding concerns the whole file.
        column: Column, from 1.
        path: Path in the document, such as `spec.stages[0].name`.
        message: What was wrong, what was expected, the nearest valid name.
        severity: An error keeps the template from running.
    """

    file: str
    line: int
    column: int
    path: str
    message: str
    severity: Severity = "error"

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}:{self.column}" if self.line else self.file
        label = "warning: " if self.severity == "warning" else ""
        return (
            f"{place}: {self.path}: {label}{self.message}"
            if self.path
            else (f"{place}: {label}{self.message}")
        )

    def to_json(self) -> dict[str, JsonValue]:
        """Returns the finding for machines."""
        return asdict(self)


def at_position(
    position: Position, path: Path, message: str, severity: Severity = "error"
) -> Diagnostic:
    """Returns a finding at a place that is not a tree's."""
    return Diagnostic(*position, format_path(path), message, severity)


def at_value(tree: Tree, message: str, severity: Severity = "error") -> Diagnostic:
    """Returns a finding about a value."""
    return at_position(tree.at, tree.path, message, severity)


def at_key(tree: Tree, message: str, severity: Severity = "error") -> Diagnostic:
    """Returns a finding about the key that leads to a value."""
    return at_position(tree.key, tree.path, message, severity)


MOST_FINDINGS = 1_000
"""Findings that are looked for in one template: more help nobody, and each takes its time."""


class Findings:
    """Collects findings, each once, so that a user sees all of them together."""

    def __init__(self) -> None:
        self._seen: dict[Diagnostic, None] = {}

    def add(self, *findings: Diagnostic) -> None:
        """Adds findings; one that is known already stays as it is.

        Raises:
            TemplateError: If there are so many that looking for more is a waste of time.
        """
        self._seen.update(dict.fromkeys(findings))
        if len(self._seen) <= MOST_FINDINGS or not self.errors:
            return
        last = next(reversed(self._seen))
        message = f"more than {MOST_FINDINGS:,} findings: the rest was not looked at"
        raise TemplateError([*self.errors, replace(last, path="", message=message)])

    @property
    def errors(self) -> tuple[Diagnostic, ...]:
        """The errors, in file order."""
        return self._of("error")

    @property
    def warnings(self) -> tuple[Diagnostic, ...]:
        """The warnings, in file order."""
        return self._of("warning")

    def raise_errors(self) -> None:
        """Raises all errors as one.

        Raises:
            TemplateError: If there is any error.
        """
        if self.errors:
            raise TemplateError(self.errors)

    def _of(self, severity: Severity) -> tuple[Diagnostic, ...]:
        return in_file_order([item for item in self._seen if item.severity == severity])


def errors_of(findings: Iterable[Diagnostic]) -> list[Diagnostic]:
    """Returns the findings that keep a template from running."""
    return [each for each in findings if each.severity == "error"]


def in_file_order(findings: Sequence[Diagnostic]) -> tuple[Diagnostic, ...]:
    """Returns findings by line and column; files keep their order."""
    files = {name: place for place, name in enumerate(dict.fromkeys(f.file for f in findings))}
    return tuple(sorted(findings, key=lambda item: (files[item.file], item.line, item.column)))
