"""Which template is meant, and what it is once changed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mloc_dagster.compile import (
    CompiledTemplate,
    Diagnostic,
    Document,
    Sets,
    apply_sets,
    compile_document,
    compile_file,
    load_documents,
    with_partition,
)
from mloc_dagster.errors import TemplateError
from mloc_dagster.library import library_file


def template_path(named: str) -> Path:
    """Returns the file that is meant: a path, or the name of a library template.

    Raises:
        UnknownNameError: If it is neither.
    """
    path = Path(named)
    if path.exists() or path.suffix in (".yaml", ".yml") or path.is_absolute():
        return path  # the loader says what is wrong with it
    return library_file(named)


def compile_with_sets(
    path: Path, sets: Sets, partition: str | None = None
) -> list[CompiledTemplate]:
    """Compiles every document of a file, changed as `--set` asks.

    Args:
        path: The file.
        sets: The changes.
        partition: The partition that its runs compute.

    Raises:
        TemplateError: If any of it is wrong; carries every finding.
    """
    if sets or partition is not None:
        return compile_changed(load_documents(path), sets, partition)
    return compile_file(path)


def compile_changed(
    documents: Sequence[Document], sets: Sets, partition: str | None = None
) -> list[CompiledTemplate]:
    """Compiles documents with values replaced; see `compile_with_sets`."""
    templates: list[CompiledTemplate] = []
    findings: list[Diagnostic] = []
    for document in documents:
        try:
            changed = apply_sets(document, sets)
            if partition is not None:
                changed = with_partition(changed, partition)
            templates.append(compile_document(changed))
        except TemplateError as error:
            findings += [each for each in error.diagnostics if isinstance(each, Diagnostic)]
    if findings:
        raise TemplateError(list(dict.fromkeys(findings)))
    return templates


def check_partitions(templates: Sequence[CompiledTemplate]) -> None:
    """Makes sure that templates were compiled for partitions that they have.

    Raises:
        InputError: If one has no such partition, or has some and none was given.
    """
    if any(each.partitions is not None or each.partition is not None for each in templates):
        from mloc_dagster.assets import check_partition  # and Dagster

        for each in templates:
            check_partition(each)
