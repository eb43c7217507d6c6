"""Checks of the tools that a task may call, of whichever task type it is."""

from __future__ import annotations

from collections.abc import Iterable

from mloc_dagster.compile.checks import nearest
from mloc_dagster.compile.compiled import CompiledTemplate
from mloc_dagster.compile.diagnostics import Diagnostic, Findings, at_value
from mloc_dagster.compile.tree import Path, Tree
from mloc_dagster.errors import MlocError, UnknownNameError
from mloc_dagster.schema import AgentTool, TaskSpec, tools_in
from mloc_dagster.settings import settings
from mloc_dagster.tools import check_registered, check_tools


def check_tool_names(spec: Tree, typed: TaskSpec, findings: Findings) -> None:
    """Adds functions that nobody registered, and options that they do not take.

    What is registered here counts, as for metrics and rewards, and what the operator of an API has
    allowed by name: that may be installed where the workers are.

    Args:
        spec: The task's spec as it was written, merged with its base.
        typed: The same, typed.
        findings: Takes the errors.
    """
    for path, tool in tools_in(typed):
        if tool.entry_point is None or "${" in tool.entry_point:
            continue
        try:
            check_registered(tool, load=True)
        except UnknownNameError as error:
            if tool.entry_point not in settings().api_tools:
                findings.add(at_value(nearest(spec, (*path, "entry_point")), str(error)))
        except MlocError as error:
            findings.add(at_value(nearest(spec, (*path, "options")), str(error)))


def tool_places(spec: Tree, typed: TaskSpec) -> dict[Path, Tree]:
    """Returns where the tools of a task stand, by their path in the spec."""
    return {path: nearest(spec, path) for path, _ in tools_in(typed)}


def look_for_tools(templates: Iterable[CompiledTemplate]) -> list[Diagnostic]:
    """Returns a warning for each tool whose key or program is missing on this machine.

    Workers may have it.
    """
    return [
        at_value(task.named[path], reason, "warning")
        for template in templates
        for task in template.tasks
        for path, tool in tools_in(task.task.spec)
        if path in task.named and (reason := _missing(tool)) is not None
    ]


def _missing(tool: AgentTool) -> str | None:
    if tool.kind == "agent":  # its own tools come as well
        return None
    try:
        check_tools([tool])
    except MlocError as error:
        return str(error)
    return None
