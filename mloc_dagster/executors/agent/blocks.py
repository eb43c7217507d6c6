"""The `inference` block of a turn, with the tools that it offers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mloc_dagster.executors.prompts import tool_definitions
from mloc_dagster.results import Brief, Journal
from mloc_dagster.schema import FunctionTool, Inference


class Blocks:
    """The `inference` block with the tools that a turn offers; equal ones are one object.

    Args:
        inference: The task's.
    """

    def __init__(self, inference: Inference) -> None:
        self._inference = inference
        self._known: dict[tuple[int, int], tuple[object, object, Inference]] = {}
        self._brief: Inference | None = None

    def of(self, tools: Sequence[FunctionTool], form: object) -> Inference:
        """Returns the block with these tools, or for an answer of this form."""
        key = (id(tools), id(form))
        known = self._known.get(key)
        if known is None:
            fields: dict[str, Any] = {"tools": tools}
            if form is not None:
                fields["structured_outputs"] = {"json": form}
            given = self._inference.model_dump(by_alias=True, exclude_unset=True)
            block = Inference.model_validate({**given, **fields})
            known = self._known[key] = tools, form, block  # kept, so that the ids stay theirs
        return known[2]

    def keep_brief(self, block: Inference, instructions: str | None, journal: Journal) -> None:
        """Keeps, once, what the rows are told and offered."""
        if block is not self._brief:
            self._brief = block
            journal.brief(Brief(instructions, tool_definitions(block)))
