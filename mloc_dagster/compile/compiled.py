"""What a template compiles to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from pydantic import JsonValue

from mloc_dagster.compile.diagnostics import Diagnostic
from mloc_dagster.compile.expressions import Reference
from mloc_dagster.compile.tree import Path, Tree
from mloc_dagster.errors import TemplateError
from mloc_dagster.schema.resources import Schedule
from mloc_dagster.schema.task import Metadata, Task


@dataclass(frozen=True, slots=True)
class CompiledTask:
    """One task of a template.

    Attributes:
        task: The typed task; references to results stand in it unresolved (`resolve_task`).
        mapping: Its spec, merged and in today's spelling, references unresolved.
        references: What it reads of upstream results, in strings and in columns. Their nodes
            are among `task.depends_on`.
        places: The single values of its data blocks and where each stands, by their path in the
            spec: for what is found when somebody looks at the data.
        unbuilt: Why nothing here can run it, and where the template asks for it; None if all is
            well.
    """

    task: Task
    mapping: Mapping[str, JsonValue]
    references: tuple[Reference, ...]
    places: Mapping[Path, Tree] = field(default_factory=dict[Path, Tree])
    unbuilt: Diagnostic | None = None


@dataclass(frozen=True, slots=True)
class CompiledTemplate:
    """A template that can run.

    Attributes:
        metadata: Who and what it is.
        kind: As written.
        tasks: Its tasks in topological order; one when it has neither stages nor graph.
        schedule: When it runs by itself.
        content_hash: Hex sha256 of the document as canonical JSON.
        document: The document as written.
        warnings: What works today but should be written otherwise.
    """

    metadata: Metadata
    kind: str
    tasks: tuple[CompiledTask, ...]
    schedule: Schedule | None
    content_hash: str
    document: Mapping[str, JsonValue]
    warnings: tuple[Diagnostic, ...]

    @property
    def unbuilt(self) -> tuple[Diagnostic, ...]:
        """Why nothing here can run it, of each task of which that is so."""
        return tuple(each.unbuilt for each in self.tasks if each.unbuilt is not None)

    def check_built(self) -> None:
        """Makes sure that something can run each of its tasks.

        Raises:
            TemplateError: If a task type is not built yet.
        """
        if self.unbuilt:
            raise TemplateError(self.unbuilt)
