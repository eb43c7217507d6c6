"""What a task may spend, and each of its rows."""

from __future__ import annotations

from pydantic import Field

from mloc_dagster.schema.base import Block


class Limits(Block):
    """What may be spent; what is left out is without limit."""

    tokens: int | None = Field(default=None, ge=1)
    """Tokens read and written. Prompt tokens from a prefix cache count, those of reused rows do
    not: nobody computed them."""

    cost: float | None = Field(default=None, gt=0)
    """In the currency of `resources.cost_per_token` or `resources.cost_per_hour`; it needs one."""

    seconds: float | None = Field(default=None, gt=0)
    """Of a task, the seconds in which at least one of its shards was at work, as
    `usage.latency_sec` counts them; of a row, those from its start to its end."""

    @property
    def given(self) -> dict[str, float]:
        """The limits that there are, by name."""
        amounts = {"tokens": self.tokens, "cost": self.cost, "seconds": self.seconds}
        return {name: amount for name, amount in amounts.items() if amount is not None}


class Budget(Limits):
    """What the whole task may spend: it stops there, and keeps what is finished."""

    per_row: Limits = Limits()
    """What each row may spend."""
