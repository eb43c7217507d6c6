"""References between nodes: checked when a template is compiled, resolved when a task starts.

`${UPPER_CASE}` is an environment reference: it stays as it is until the moment of use, when
`Reach.filled_in` reads the variable (`net.reach`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, get_args, get_origin

from pydantic import BaseModel, JsonValue

from mloc_dagster.compile.compiled import (
    PARTITION,
    CompiledTask,
    Part,
    Reference,
    parse_expression,
    references_in,
    split_string,
    whole_reference,
)
from mloc_dagster.compile.diagnostics import Findings, at_value, find
from mloc_dagster.compile.tree import Path, Tree, tree_of
from mloc_dagster.compile.typed import fields_of, step_into, task_from_mapping
from mloc_dagster.errors import DataError, InputError, nearest_hint
from mloc_dagster.schema import Task, TaskType, alternatives, literal, marked_in_spec

__all__ = [
    "Reference",
    "parse_expression",
    "resolve_references",
    "resolve_task",
]

_PLACEHOLDER_TEXTS = frozenset(
    {("data", "text"), ("data", "template", "text"), ("data", "prompt"), ("data", "messages")}
)


def resolve_references(value: JsonValue, lookup: Callable[[Reference], JsonValue]) -> JsonValue:
    """Replaces every reference in a value, and `$${` by `${`.

    Args:
        value: A spec, or another value.
        lookup: Gives the value of a reference; a string that is one reference keeps its type.

    Raises:
        DataError: If a reference has no value, or one that cannot stand within text.
    """
    return _Resolver(lookup, frozenset(each.path for each in marked_in_spec(value))).resolve(value)


def resolve_task(
    compiled: CompiledTask,
    lookup: Callable[[Reference], JsonValue],
    check: Callable[[JsonValue], None] = lambda _: None,
) -> Task:
    """Returns a compiled task with every reference replaced by its value.

    Args:
        compiled: The task.
        lookup: Gives the value of a reference.
        check: Looks at the spec once its references are replaced; may raise.

    Raises:
        DataError: If a reference has no value.
        TemplateError: If a value does not fit the field that it fills.
    """
    spec = resolve_references(dict(compiled.mapping), lookup)
    check(spec)
    return task_from_mapping(compiled.task.name, compiled.task.depends_on, spec)


def _look_up(reference: Reference, lookup: Callable[[Reference], JsonValue]) -> JsonValue:
    try:
        value = lookup(reference)
    except (KeyError, IndexError, TypeError) as error:
        raise DataError(f"${{{reference}}} has no value: {error!r}") from error
    if value is None:
        raise DataError(f"${{{reference}}} has no value: the result holds null there")
    return value


@dataclass(frozen=True, slots=True)
class _Resolver:
    """Replaces references.

    Attributes:
        lookup: Gives the value of a reference.
        marked: Places of the spec whose values mean files, addresses, secrets or options.
    """

    lookup: Callable[[Reference], JsonValue]
    marked: frozenset[Path]

    def resolve(self, value: JsonValue, at: Path = ()) -> JsonValue:
        if isinstance(value, dict):
            return {key: self.resolve(child, (*at, key)) for key, child in value.items()}
        if isinstance(value, list):
            return [self.resolve(child, (*at, i)) for i, child in enumerate(value)]
        if not isinstance(value, str) or "${" not in value:
            return value
        whole = whole_reference(value)
        if whole is not None:
            return self._found(whole, at)
        return "".join(self._render(part, at) for part in split_string(value))

    def _render(self, part: Part, at: Path) -> str:
        if part.kind == "text":
            return part.text
        if part.kind in ("environment", "partition"):
            return f"${{{part.text}}}"
        reference = parse_expression(part.text)
        value = self._found(reference, at)
        if isinstance(value, dict | list):
            raise DataError(f"${{{reference}}} is not a single value and cannot stand within text")
        if isinstance(value, bool):
            return "true" if value else "false"
        return str(value)

    def _found(self, reference: Reference, at: Path) -> JsonValue:
        value = _look_up(reference, self.lookup)
        if isinstance(value, str) and not _PLACEHOLDER_TEXTS.isdisjoint((at, at[:2])):
            return literal(value)  # braces in an answer are no placeholders of the template's text
        # A model's output must not be able to name a secret where variables are expanded later.
        if isinstance(value, str) and at in self.marked and "${" in value:
            raise DataError(f"${{{reference}}} holds '${{', which must not come from a result here")
        return value


_SCALARS: Mapping[type, JsonValue] = {bool: True, int: 1, float: 1.0, str: "text"}


class ReferenceCheck:
    """Checks one node's spec.

    Args:
        ancestors: Task types of the nodes that end before this one, by name.
        names: All nodes of the template.
        findings: Takes what is wrong.
        partitioned: Whether each run has a partition.

    Attributes:
        found: What the node reads of upstream results.
        reads: Names of the nodes that it reads.
    """

    def __init__(
        self,
        ancestors: Mapping[str, TaskType],
        names: frozenset[str],
        findings: Findings,
        *,
        partitioned: bool,
    ) -> None:
        self._ancestors = ancestors
        self._names = names
        self._findings = findings
        self._partitioned = partitioned
        self.found: list[Reference] = []
        self.reads: list[str] = []

    def example(self, tree: Tree) -> Tree:
        """Checks all references below; returns the tree with an example value for each."""
        if isinstance(tree.content, dict):
            return tree.with_fields(
                {key: self.example(child) for key, child in tree.fields.items()}
            )
        if isinstance(tree.content, list):
            return replace(tree, content=[self.example(child) for child in tree.items])
        if isinstance(tree.content, str) and "${" in tree.content:
            return self._string(tree, tree.content)
        return tree

    def data(self, spec: Tree) -> None:
        """Checks what the `data` blocks read of other nodes."""
        kind = find(spec, ("data", "type"))
        if kind is None or kind.content == "upstream":
            for path in (("data", "node"), ("evaluation", "data", "node")):
                node = find(spec, path)
                if node is not None and node.text is not None and self._reachable(node, node.text):
                    self._needs_rows(node, node.text)
        elif kind.content == "graph_template":
            columns = find(spec, ("data", "template", "columns"))
            for column in columns.items if columns is not None else ():
                self._column(column)

    def _string(self, tree: Tree, text: str) -> Tree:
        try:
            whole = whole_reference(text)
            references = list(references_in(text))
        except InputError as error:
            self._findings.add(at_value(tree, str(error)))
            return tree
        if not self._partitioned and PARTITION in text:
            self._partition(tree, text)
        example = tree
        for reference in references:
            annotation = self._check(tree, reference)
            if annotation is None:
                continue
            if "*" in reference.path:
                message = f"'[*]' in ${{{reference}}} works in columns of a graph_template only"
                self._findings.add(at_value(tree, message))
            elif whole is not None:
                value = tree_of(example_of(annotation, reference), tree.at, tree.path)
                example = replace(value, raw=text)
            elif not _is_scalar(annotation):
                message = f"${{{reference}}} is not a single value and cannot stand within text"
                self._findings.add(at_value(tree, message))
        return example

    def _partition(self, tree: Tree, text: str) -> None:
        if any(part.kind == "partition" for part in split_string(text)):
            message = (
                f"{PARTITION} is the partition of a run, and the runs of this template have none: "
                "say spec.partitions, or give it a partitions_def in a Dagster project "
                "(docs/dagster.md)"
            )
            self._findings.add(at_value(tree, message))

    def _column(self, column: Tree) -> None:
        place = column.fields.get("expr") or column.fields.get("path") or column
        expression = place.text
        if place is column or expression is None:
            return
        node = column.fields.get("node")
        if "expr" not in column.fields:
            expression = f"{node.text if node else ''}.{expression}"
        try:
            reference = parse_expression(expression)
        except InputError as error:
            self._findings.add(at_value(place, str(error)))
            return
        self._check(node if node is not None and node.text else place, reference)

    def _check(self, tree: Tree, reference: Reference) -> Any | None:
        if not self._reachable(tree, reference.node):
            return None
        self.found.append(reference)
        annotation: Any = self._ancestors[reference.node].result_type
        done: list[str | int] = []
        many = False
        for step in reference.path:
            below = step_into(annotation, 0 if step == "*" else step)
            if not below:
                self._no_step(tree, annotation, Reference(reference.node, tuple(done)), step)
                return None
            annotation = below[0]
            many = many or step == "*"
            done.append(step)
        return tuple[annotation, ...] if many else annotation

    def _reachable(self, tree: Tree, node: str) -> bool:
        if node in self._ancestors:
            if node not in self.reads:
                self.reads.append(node)
            return True
        if node in self._names:
            message = f"{node!r} does not end before this task; name it in dependsOn"
        elif not self._ancestors:
            message = f"no node {node!r}: this task comes after no other"
        else:
            message = f"no node is called {node!r}{nearest_hint(node, self._ancestors)}"
        self._findings.add(at_value(tree, message))
        return False

    def _needs_rows(self, tree: Tree, node: str) -> None:
        if not self._ancestors[node].has_rows:
            message = f"{node!r} is a training ({self._ancestors[node].name}) and leaves no rows"
            self._findings.add(at_value(tree, message))

    def _no_step(self, tree: Tree, annotation: Any, done: Reference, step: str | int) -> None:
        fields = {
            name
            for member in alternatives(annotation)
            if isinstance(member, type) and issubclass(member, BaseModel)
            for name in fields_of(member)
        }
        if isinstance(step, int) or step == "*":
            message = f"{done} is no list, [{step}] does not apply"
        elif fields:
            message = f"{done} has no field {step!r}{nearest_hint(step, fields)}"
        elif step_into(annotation, 0):
            message = f"{done} is a list: pick an item, such as {done}[0].{step}"
        else:
            message = f"{done} is a single value and has no field {step!r}"
        self._findings.add(at_value(tree, message))


def example_of(annotation: Any, reference: Reference) -> JsonValue:
    """Returns a value such as a result may hold."""
    if reference.path and str(reference.path[-1]).endswith("_url"):
        return "https://example.invalid/archive.zip"
    member = next(alternatives(annotation))
    if member in _SCALARS:
        return _SCALARS[member]
    if isinstance(member, type) and issubclass(member, BaseModel):
        fields = fields_of(member)
        return {name: example_of(inner, Reference("", (name,))) for name, inner in fields.items()}
    if get_origin(member) is tuple:
        return [example_of(get_args(member)[0], Reference("", ()))]
    return {}


def _is_scalar(annotation: Any) -> bool:
    return all(member in _SCALARS for member in alternatives(annotation)) or not isinstance(
        example_of(annotation, Reference("", ())), dict | list
    )
