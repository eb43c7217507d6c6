"""What can be said of a template before it runs."""

from __future__ import annotations

import os
from collections.abc import Sequence

from mloc_dagster.compile import Diagnostic, in_file_order
from mloc_dagster.data import Rows, look_at_data, write_rows
from mloc_dagster.errors import TemplateError
from mloc_dagster.local_run import TaskEstimate, check_partitions, estimate_template
from mloc_dagster.python.templates import Changes, Template, compile_template
from mloc_dagster.results import open_store, results_at


def validate(
    template: Template,
    *,
    set: Changes | None = None,
    look: bool = True,
) -> tuple[Diagnostic, ...]:
    """Returns all that is wrong with a template, each with file, line, path and message.

    Args:
        template: A file, the name of a library template, YAML, a mapping, or what builds one.
        set: Values to replace, by path.
        look: Whether to look at the data files that it names, too.

    Returns:
        Errors and warnings, by their `severity`; none of a template that is right.

    Raises:
        InputError: If it is nothing that stands for a template.
    """
    try:
        templates = compile_template(template, set, None)
    except TemplateError as error:
        return tuple(each for each in error.diagnostics if isinstance(each, Diagnostic))
    found = [finding for each in templates for finding in each.warnings]
    return in_file_order([*found, *(look_at_data(templates) if look else ())])


def estimate(
    template: Template,
    *,
    set: Changes | None = None,
    data: Rows | None = None,
    partition: str | None = None,
    results: str | os.PathLike[str] | None = None,
) -> Sequence[TaskEstimate]:
    """Returns what each task of a template is expected to take, as `mloc estimate` shows it.

    Args:
        template: A file, the name of a library template, YAML, a mapping, or what builds one.
        set: Values to replace, by path.
        data: Rows instead of the template's, as for `run`.
        partition: The partition that is computed, of a template that has any.
        results: Where earlier tasks are; by default `MLOC_RESULTS_URL`, else `results`.

    Raises:
        TemplateError: If the template is wrong; carries every finding.
        DataError: If the input of a task is missing, unreadable or empty.
    """
    rows = write_rows(data)
    try:
        templates = compile_template(template, set, rows, partition)
        check_partitions(templates)
        for compiled in templates:
            compiled.check_built()
        store = open_store(None if results is None else os.fspath(results))
        with results_at(store.url):
            return [each for compiled in templates for each in estimate_template(compiled, store)]
    finally:
        if rows is not None:
            rows.delete()
