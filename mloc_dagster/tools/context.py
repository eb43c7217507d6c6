"""The context of a call that no agent makes."""

from __future__ import annotations

from typing import Any

from pydantic_ai import RunContext
from pydantic_ai.models.test import TestModel
from pydantic_ai.usage import RunUsage


def bare_context() -> RunContext[Any]:
    """Returns what toolsets want to be given where there is no agent."""
    return RunContext(deps=None, model=TestModel(), usage=RunUsage())
