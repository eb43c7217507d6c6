"""Calls that failed: what the model is told of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass


class FailedCall(str):
    """The result of a call that failed: a text like any result, which begins with `Error: `."""

    __slots__ = ()


class ToolFailure(Exception):
    """Raised by a tool of ours; its message is the whole of what the model is told."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a call may take.

    Attributes:
        seconds: So long.
        warning: What is said of a call that was cut off.
    """

    seconds: float
    warning: str = ""

    @asynccontextmanager
    async def limit(self, name: str) -> AsyncGenerator[None]:
        """Ends a call that takes too long.

        Args:
            name: The tool.

        Raises:
            ToolFailure: If it does.
        """
        timeout = asyncio.timeout(self.seconds)
        try:
            async with timeout:
                yield
        except TimeoutError:
            if not timeout.expired():
                raise
            message = f"{name} took longer than {self.seconds:g} s{self.warning}"
            raise ToolFailure(message) from None
