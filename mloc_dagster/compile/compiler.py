"""Documents → typed tasks in the order in which they can run."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

from pydantic import JsonValue

from mloc_dagster.compile.carried_check import check_carried
from mloc_dagster.compile.checks import (
    check_artifacts,
    check_budget,
    check_data,
    check_engine,
    data_places,
    file_places,
)
from mloc_dagster.compile.compiled import CompiledTask, CompiledTemplate
from mloc_dagster.compile.diagnostics import (
    MOST_FINDINGS,
    Diagnostic,
    Findings,
    at_key,
    at_value,
    errors_of,
    find,
    in_file_order,
    merge_value,
    normalise,
)
from mloc_dagster.compile.effects import Effects
from mloc_dagster.compile.evaluation_check import check_evaluation
from mloc_dagster.compile.index_check import index_places
from mloc_dagster.compile.library_texts import with_library_texts
from mloc_dagster.compile.loader import Document, load_documents, parse_documents
from mloc_dagster.compile.nodes import (
    STRUCTURE_KEYS,
    NodeDraft,
    ancestors_of,
    check_base_keys,
    check_size,
    merged_spec,
    read_nodes,
)
from mloc_dagster.compile.parts import with_parts
from mloc_dagster.compile.presets import with_presets
from mloc_dagster.compile.references import ReferenceCheck
from mloc_dagster.compile.tool_check import check_tool_names, tool_places
from mloc_dagster.compile.training_check import check_training
from mloc_dagster.compile.tree import Position, Tree, tree_of
from mloc_dagster.compile.typed import shown, validate
from mloc_dagster.errors import TemplateError, TerminalError, UnknownNameError, nearest_hint
from mloc_dagster.schema import (
    SLO_ANNOTATION,
    ColumnPartitions,
    DatasetData,
    Documents,
    Partitioned,
    Partitions,
    Schedule,
    Task,
    TaskSpec,
    TaskType,
    Template,
    TrainingData,
    all_kinds,
    canonical_json,
    find_task_type,
    task_types,
    types_of_kind,
)

__all__ = [
    "CompiledTask",
    "CompiledTemplate",
    "compile_document",
    "compile_file",
    "compile_files",
    "compile_mapping",
    "compile_text",
]


def compile_document(document: Document, *, partitioned: bool = False) -> CompiledTemplate:
    """Compiles one document.

    Args:
        document: The document.
        partitioned: Whether its runs each have a partition, which it may name.

    Raises:
        TemplateError: If it is wrong; carries every finding.
    """
    return _Compiler(document, partitioned=partitioned).compile()


def compile_mapping(
    mapping: Mapping[str, JsonValue], name: str = "template", *, partition: str | None = None
) -> CompiledTemplate:
    """Compiles a document that comes from elsewhere than a file.

    Args:
        mapping: The document.
        name: What to call it in findings.
        partition: The partition that `fill_partition` has put into it.

    Raises:
        TemplateError: If it is wrong; carries every finding, without lines.
    """
    return compile_document(Document(name, tree_of(dict(mapping), Position(name)), partition))


def compile_file(path: Path) -> list[CompiledTemplate]:
    """Compiles every document of a file.

    Raises:
        TemplateError: If any of it is wrong; carries every finding of the file.
    """
    templates, diagnostics = compile_files([path])
    if errors := errors_of(diagnostics):
        raise TemplateError(errors)
    return templates


def compile_files(paths: Iterable[Path]) -> tuple[list[CompiledTemplate], list[Diagnostic]]:
    """Compiles every document of every file.

    Returns:
        The templates without errors, and every error and warning of all files.
    """
    templates: list[CompiledTemplate] = []
    diagnostics: list[Diagnostic] = []
    for path in paths:
        compiled, found = _compile_documents(partial(load_documents, path))
        templates += compiled
        diagnostics += found
    return templates, diagnostics


def compile_text(
    text: bytes | str, name: str, anchor: Callable[[Tree], Tree] = lambda root: root
) -> tuple[list[CompiledTemplate], list[Diagnostic]]:
    """Compiles every document of a YAML text that came from elsewhere than a file.

    Args:
        text: The YAML.
        name: What to call it in findings.
        anchor: Says where the data files are that a document names; see `anchor.anchor_files`.

    Returns:
        The templates without errors, and every error and warning, in the text's order.
    """
    return _compile_documents(
        lambda: [Document(each.name, anchor(each.root)) for each in parse_documents(text, name)]
    )


def _compile_documents(
    read: Callable[[], Iterable[Document]],
) -> tuple[list[CompiledTemplate], list[Diagnostic]]:
    try:
        documents = read()
    except TemplateError as error:
        return [], [item for item in error.diagnostics if isinstance(item, Diagnostic)]
    templates: list[CompiledTemplate] = []
    diagnostics: list[Diagnostic] = []
    names: dict[str, int] = {}
    for document in documents:
        name = find(document.root, ("metadata", "name"))
        if name is not None and name.text is not None:
            if name.text in names:
                message = f"{name.text!r} is taken by the document in line {names[name.text]}"
                diagnostics.append(at_value(name, message))
            names.setdefault(name.text, document.root.at.line)
        if len(diagnostics) > MOST_FINDINGS:
            break
        try:
            check_size(document.root)
            template = compile_document(document)
        except TemplateError as error:
            diagnostics += [item for item in error.diagnostics if isinstance(item, Diagnostic)]
        else:
            templates.append(template)
            diagnostics += template.warnings
    return templates, list(in_file_order(diagnostics))


class _Compiler:
    def __init__(self, document: Document, *, partitioned: bool) -> None:
        self._findings = Findings()
        laid = with_presets(document, self._findings)
        self._document = with_library_texts(with_parts(laid, self._findings), self._findings)
        self._partitioned = partitioned
        self._effects = Effects()

    def compile(self) -> CompiledTemplate:
        root = self._document.root
        template = validate(Template, root, self._findings)
        self._known_kind()
        spec = root.fields.get("spec")
        if spec is None or not isinstance(spec.content, dict):
            self._findings.raise_errors()
            raise AssertionError("a template without spec was accepted")
        base = self._slo_annotation(normalise(spec, self._findings))
        schedule = self._schedule(base)
        partitions = self._partitions(base)
        tasks = self._tasks(base)
        self._check_column(base, partitions, tasks)
        self._findings.raise_errors()
        self._effects.warn(self._findings)
        self._check_kind(tasks)
        if template is None:
            raise AssertionError("an invalid template was accepted")
        return CompiledTemplate(
            metadata=template.metadata,
            kind=template.kind,
            tasks=tuple(tasks),
            schedule=schedule,
            content_hash=_hash(self._document.mapping),
            document=self._document.mapping,
            warnings=self._findings.warnings,
            partitions=partitions,
            partition=self._document.partition,
        )

    def _known_kind(self) -> None:
        kind = self._document.root.fields.get("kind")
        known = all_kinds()
        if kind is not None and kind.text is not None and kind.text not in known:
            hint = nearest_hint(kind.text, known)
            self._findings.add(at_value(kind, f"unknown value {shown(kind)}{hint}"))

    def _check_kind(self, tasks: Sequence[CompiledTask]) -> None:
        kind = self._document.root.fields["kind"]
        implied = types_of_kind(kind.text or "")
        types = dict.fromkeys(each.task.spec.task_type for each in tasks)
        if len(implied) == 1 and not implied[0].parts and implied[0].name not in types:
            listed = ", ".join(repr(each) for each in types)
            message = f"kind {kind.text} has no effect: taskType says {listed}"
            self._findings.add(at_value(kind, message, "warning"))

    def _slo_annotation(self, spec: Tree) -> Tree:
        annotation = find(self._document.root, SLO_ANNOTATION)
        if annotation is None:
            return spec
        return merge_value(spec, ("slo", "seconds"), annotation, self._findings)

    def _schedule(self, spec: Tree) -> Schedule | None:
        schedule = spec.fields.get("schedule")
        if schedule is None or schedule.content is None:  # `--set spec.schedule=null` removes it
            return None
        return validate(Schedule, schedule, self._findings)

    def _partitions(self, spec: Tree) -> Partitions | None:
        partitions = spec.fields.get("partitions")
        if partitions is None or partitions.content is None:
            return None
        self._partitioned = True  # wrong or not, `${partition_key}` means something
        found = validate(Partitioned, spec.with_fields({"partitions": partitions}), self._findings)
        return None if found is None else found.partitions

    def _check_column(
        self, spec: Tree, partitions: Partitions | None, tasks: Sequence[CompiledTask]
    ) -> None:
        if not isinstance(partitions, ColumnPartitions) or not tasks:
            return
        for each in tasks:
            data = getattr(each.task.spec, "data", None)
            if isinstance(data, DatasetData | Documents) or (
                isinstance(data, TrainingData) and data.has_columns
            ):
                return
        place = find(spec, ("partitions", "column")) or spec
        message = "selects rows of a dataset, and no task of this template reads one"
        self._findings.add(at_value(place, message))

    def _tasks(self, base: Tree) -> list[CompiledTask]:
        nodes = read_nodes(base, self._findings)
        if nodes is None:
            return self._single(base)
        types: dict[str, TaskType] = {}
        for node in nodes:
            found = self._task_type(node.spec, base)
            if found is not None:
                types[node.name] = found
        if len(types) == len(nodes) > 0:
            check_base_keys(base, types.values(), self._findings)
        ancestors = ancestors_of(nodes)
        tasks: list[CompiledTask] = []
        for node in nodes:
            if node.name in types and ancestors[node.name] <= types.keys():
                spec = merged_spec(base, node, types[node.name], types)
                before = {name: types[name] for name in sorted(ancestors[node.name])}
                tasks += self._task(node, types[node.name], spec, before, frozenset(types))
        return tasks

    def _single(self, base: Tree) -> list[CompiledTask]:
        depends_on = base.fields.get("dependsOn")
        if depends_on is not None:
            message = "'dependsOn' needs other tasks: write them as spec.stages or spec.graph.nodes"
            self._findings.add(at_key(depends_on, message))
        found = self._task_type(base, base)
        if found is None:
            return []
        name = find(self._document.root, ("metadata", "name"))
        node = NodeDraft((name and name.text) or "task", (), base, is_stage=False)
        fields = {
            key: child
            for key, child in base.fields.items()
            if key not in (*STRUCTURE_KEYS, "dependsOn")
        }
        fields.setdefault("taskType", tree_of(found.name, base.at, (*base.path, "taskType")))
        return self._task(node, found, base.with_fields(fields), {}, frozenset())

    def _task_type(self, spec: Tree, base: Tree) -> TaskType | None:
        given = spec.fields.get("taskType") or base.fields.get("taskType")
        if given is not None:
            return self._named_type(given)
        kind = self._document.root.fields.get("kind")
        name = kind.text if kind is not None else None
        implied = types_of_kind(name or "")
        if len(implied) == 1:
            return implied[0]
        if implied or name is None:
            listed = ", ".join(repr(each.name) for each in implied or task_types().values())
            self._findings.add(at_key(base, f"'taskType' is required: one of {listed}"))
        return None

    def _named_type(self, given: Tree) -> TaskType | None:
        try:
            return find_task_type(str(given.content))
        except (UnknownNameError, TerminalError) as error:
            self._findings.add(at_value(given, str(error)))
            return None

    def _task(
        self,
        node: NodeDraft,
        descriptor: TaskType,
        spec: Tree,
        ancestors: Mapping[str, TaskType],
        names: frozenset[str],
    ) -> list[CompiledTask]:
        check = ReferenceCheck(ancestors, names, self._findings, partitioned=self._partitioned)
        example = check.example(spec)
        check.data(spec)
        typed = validate(descriptor.spec, example, self._findings)
        if typed is None:
            return []
        depends_on = tuple(dict.fromkeys((*node.depends_on, *check.reads)))
        typed = _unresolved(descriptor.spec, spec, example) or typed
        check_data(spec, typed, self._findings)
        check_engine(spec, typed, self._findings)
        check_budget(spec, typed, self._findings)
        check_training(spec, typed, self._findings)
        check_evaluation(spec, typed, self._findings)
        check_carried(spec, typed, ancestors, self._findings)
        check_tool_names(spec, typed, self._findings)
        if descriptor.executor is not None:
            check_artifacts(spec, typed, self._effects)
        self._effects.add(descriptor, spec, typed)
        # The name is metadata's or a node's, and was checked there.
        task = Task.model_construct(name=node.name, depends_on=depends_on, spec=typed)
        mapping = spec.mapping()
        references = tuple(dict.fromkeys(check.found))
        unbuilt = self._unbuilt(spec.fields["taskType"], descriptor)
        places = {
            **data_places(spec),
            **file_places(spec, descriptor.spec, mapping),
        }
        named = {**tool_places(spec, typed), **index_places(spec, typed)}
        return [CompiledTask(task, mapping, references, places, named, node.spec.key, unbuilt)]

    def _unbuilt(self, given: Tree, descriptor: TaskType) -> Diagnostic | None:
        """Returns why nothing can run a task, with a warning about it."""
        if descriptor.executor is not None:
            return None
        if descriptor.parts:  # what it stands for is known only where it holds no references
            message = (
                f"a template of {descriptor.name} cannot take values from other tasks' results"
            )
            self._findings.add(at_value(given, message))
            return at_value(given, message)
        message = f"task type {given.text!r} is not built yet: a template with it validates only"
        self._findings.add(at_value(given, message, "warning"))
        return at_value(given, message)


def _unresolved(block: type[TaskSpec], spec: Tree, example: Tree) -> TaskSpec | None:
    """Returns the spec with references as written, where its fields can hold them."""
    return validate(block, spec, Findings()) if spec != example else None


def _hash(mapping: Mapping[str, JsonValue]) -> str:
    text = canonical_json(mapping)
    return hashlib.sha256(text.encode()).hexdigest()
