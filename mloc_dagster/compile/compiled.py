"""What a template compiles to, and the grammar of references: `${node.result.items[0].output}`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from pydantic import JsonValue

from mloc_dagster.compile.diagnostics import Diagnostic
from mloc_dagster.compile.tree import Path, Position, Tree
from mloc_dagster.errors import InputError, TemplateError
from mloc_dagster.schema import Metadata, Partitions, Schedule, Task

Step = str | int
"""A field name, an index, or `"*"` for every item."""

TOKEN = re.compile(r"\$\$\{|\$\{(?P<inner>[^{}]*)\}|\$\{")
_PARTITION_KEY = "partition_key"
PARTITION = f"${{{_PARTITION_KEY}}}"
_ENVIRONMENT = re.compile(r"(?:ENV:)?[A-Z_][A-Z0-9_]*")
_EXPRESSION = re.compile(
    r"(?P<node>[A-Za-z0-9](?:[A-Za-z0-9._-]*?[A-Za-z0-9])?)\.result(?P<steps>(?=[.\[]|$).*)"
)
_STEP = re.compile(r"\.(?P<field>[A-Za-z_][A-Za-z0-9_]*)|\[(?P<index>\d{1,9}|\*)\]")


@dataclass(frozen=True, slots=True)
class Reference:
    """A value of an upstream node's result.

    Attributes:
        node: The stage or node.
        path: Steps below its `result`: `("items", 0, "output")`; `"*"` stands for every item.
    """

    node: str
    path: tuple[Step, ...]

    def __str__(self) -> str:
        steps = "".join(
            f"[{step}]" if isinstance(step, int) or step == "*" else f".{step}"
            for step in self.path
        )
        return f"{self.node}.result{steps}"


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of a string.

    Attributes:
        kind: `text` as it is, an `environment` reference, the `partition` of the run, or a
            `reference` to a result.
        text: The text; for references what stands between the braces.
    """

    kind: Literal["text", "environment", "partition", "reference"]
    text: str


def parse_expression(text: str) -> Reference:
    """Reads `node.result.items[0].output`.

    Raises:
        InputError: If it is not an expression.
    """
    match = _EXPRESSION.fullmatch(text.strip())
    if match is None:
        raise InputError(f"{text!r} is no reference; expected 'node.result.items[0].output'")
    steps: list[Step] = []
    rest = match["steps"]
    while rest:
        step = _STEP.match(rest)
        if step is None:
            raise InputError(f"{text!r} breaks off at {rest!r}; expected '.field', '[0]' or '[*]'")
        if step["field"] is not None:
            steps.append(step["field"])
        else:
            steps.append("*" if step["index"] == "*" else int(step["index"]))
        rest = rest[step.end() :]
    return Reference(match["node"], tuple(steps))


def split_string(text: str) -> list[Part]:
    """Cuts a string into text and references; `$${` becomes the text `${`.

    Raises:
        InputError: If a `${` is neither closed nor a reference.
    """
    parts: list[Part] = []
    end = 0
    for match in TOKEN.finditer(text):
        if match.start() > end:
            parts.append(Part("text", text[end : match.start()]))
        parts.append(_part(match, text))
        end = match.end()
    if end < len(text):
        parts.append(Part("text", text[end:]))
    return parts


def _part(match: re.Match[str], text: str) -> Part:
    if match[0] == "$${":
        return Part("text", "${")
    inner = match["inner"]
    if inner is None:
        start = text[match.start() : match.start() + 30]
        raise InputError(f"{start!r} is not closed with '}}'; write '$${{' for a literal '${{'")
    if _ENVIRONMENT.fullmatch(inner):
        return Part("environment", inner)
    if inner == _PARTITION_KEY:
        return Part("partition", inner)
    if ".result" not in inner:
        raise InputError(
            f"{match[0]!r} is neither a reference such as '${{node.result.items[0].output}}' nor "
            "an environment variable such as '${MY_TOKEN}'; write '$${' for a literal '${'"
        )
    return Part("reference", inner)


def references_in(text: str) -> Iterator[Reference]:
    """Yields the references to results in a string.

    Raises:
        InputError: If one of them is malformed.
    """
    if "${" in text:
        for part in split_string(text):
            if part.kind == "reference":
                yield parse_expression(part.text)


def whole_reference(text: str) -> Reference | None:
    """Returns the reference that a string consists of, or None when there is more or less."""
    if not text.startswith("${"):
        return None
    parts = split_string(text)
    if len(parts) == 1 and parts[0].kind == "reference":
        return parse_expression(parts[0].text)
    return None


NOWHERE = Position("")


@dataclass(frozen=True, slots=True)
class CompiledTask:
    """One task of a template.

    Attributes:
        task: The typed task; references to results stand in it unresolved (`resolve_task`).
        mapping: Its spec, merged and in today's spelling, references unresolved.
        references: What it reads of upstream results, in strings and in columns. Their nodes
            are among `task.depends_on`.
        places: The single values of its data blocks, those that name other files, and where each
            stands, by their path in the spec: for what is found when somebody looks at the files.
        named: Where its tools and the indexes that it searches stand, alike.
        at: Where it stands.
        unbuilt: Why nothing here can run it, and where the template asks for it; None if all is
            well.
    """

    task: Task
    mapping: Mapping[str, JsonValue]
    references: tuple[Reference, ...]
    places: Mapping[Path, Tree] = field(default_factory=dict[Path, Tree])
    named: Mapping[Path, Tree] = field(default_factory=dict[Path, Tree])
    at: Position = NOWHERE
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
        partitions: Which partitions its assets have; None without any of its own.
        partition: The one that it computes; None of a template for any.
    """

    metadata: Metadata
    kind: str
    tasks: tuple[CompiledTask, ...]
    schedule: Schedule | None
    content_hash: str
    document: Mapping[str, JsonValue]
    warnings: tuple[Diagnostic, ...]
    partitions: Partitions | None = None
    partition: str | None = None

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
