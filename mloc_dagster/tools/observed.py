"""Calls as a trajectory sees them: bounded in time and size, always a text, never an exception."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from pydantic_ai import RunContext
from pydantic_ai.exceptions import ModelRetry, ToolFailed
from pydantic_ai.messages import BinaryContent, ToolReturn, tool_return_ta
from pydantic_ai.toolsets import ToolsetTool, WrapperToolset

from mloc_dagster.errors import MlocError
from mloc_dagster.redaction import redact
from mloc_dagster.tools.failure import FailedCall, Patience, ToolFailure
from mloc_dagster.tools.masking import masked

MOST_CHARACTERS = 32_000
"""Of one result; a model's context holds few of these."""

_TOLD = (ToolFailure, MlocError, ModelRetry, ToolFailed)
"""Errors whose message was written for whoever reads the result."""


@dataclass
class ObservedToolset(WrapperToolset[Any]):
    """Turns whatever comes of a call into a text.

    Attributes:
        wrapped: The tools.
        patience: How long a call may take; None where the tool sees to it itself.
        secrets: Texts that no result may hold.
        outcome: Says what came of the call of a key; None where nobody can tell.
    """

    patience: Patience | None = None
    secrets: frozenset[str] = frozenset()
    outcome: Callable[[str], Awaitable[Any]] | None = None

    async def call_tool(
        self, name: str, tool_args: dict[str, Any], ctx: RunContext[Any], tool: ToolsetTool[Any]
    ) -> str:
        """Calls a tool.

        Returns:
            Its result; a `FailedCall` if it failed.
        """
        try:
            async with nullcontext() if self.patience is None else self.patience.limit(name):
                result = await super().call_tool(name, tool_args, ctx, tool)
        except Exception as error:  # noqa: BLE001 - a failing tool is an observation for the model
            return self._failed(_reason(error))
        text = self._shown(_text(result))
        return FailedCall(text) if isinstance(result, FailedCall) else text

    async def outcome_of(self, name: str, key: str) -> str | None:
        """Asks what came of a call that was cut off.

        Args:
            name: The tool.
            key: The call's idempotency key.

        Returns:
            Its result; None if it was never made.

        Raises:
            ToolFailure: If that cannot be said.
        """
        if self.outcome is None:
            raise ToolFailure("it cannot be asked what came of it")
        try:
            async with nullcontext() if self.patience is None else self.patience.limit(name):
                result = await self.outcome(key)
        except Exception as error:  # noqa: BLE001 - what it was does not matter: nobody can tell
            reason = f"asked what came of it, it failed: {_reason(error)}"
            raise ToolFailure(self._shown(redact(reason))) from None
        return None if result is None else self._shown(_text(result))

    def _failed(self, reason: str) -> FailedCall:
        return FailedCall(self._shown(f"Error: {redact(reason)}"))

    def _shown(self, text: str) -> str:
        # Half a character is none in JSON.
        text = masked(text, self.secrets).encode(errors="replace").decode()
        if len(text) > MOST_CHARACTERS:
            text = f"{text[:MOST_CHARACTERS]}… ({len(text) - MOST_CHARACTERS:,} characters more)"
        return text


def _reason(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    said = str(error).strip()
    if said and isinstance(error, _TOLD):
        return said
    return f"{type(error).__name__}: {said}" if said else type(error).__name__


def _text(result: Any) -> str:
    if isinstance(result, ToolReturn):
        result = result.return_value
    if isinstance(result, str):
        return result
    if result is None:
        return ""
    if isinstance(result, list) and any(isinstance(each, BinaryContent) for each in result):
        return "\n".join(map(_text, result))
    if isinstance(result, BinaryContent):
        return f"({result.media_type}, {len(result.data):,} bytes, which cannot be shown)"
    return tool_return_ta.dump_json(result, by_alias=True).decode()
