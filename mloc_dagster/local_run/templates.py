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


def compile_with_sets(path: Path, sets: Sets) -> list[CompiledTemplate]:
    """Compiles every document of a file, changed as `--set` asks.

    Raises:
        TemplateError: If any of it is wrong; carries every finding.
    """
    return compile_changed(load_documents(path), sets) if sets else compile_file(path)


def compile_changed(documents: Sequence[Document], sets: Sets) -> list[CompiledTemplate]:
    """Compiles documents with values replaced.

    Raises:
        TemplateError: If any of it is wrong; carries every finding.
    """
    templates: list[CompiledTemplate] = []
    findings: list[Diagnostic] = []
    for document in documents:
        try:
            templates.append(compile_document(apply_sets(document, sets)))
        except TemplateError as error:
            findings += [each for each in error.diagnostics if isinstance(each, Diagnostic)]
    if findings:
        raise TemplateError(list(dict.fromkeys(findings)))
    return templates
