"""What computing rows costs: by their tokens, or by the time of the workers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, Self

from mloc_dagster.results.rows import OutputRow
from mloc_dagster.schema import Resources

SECONDS_PER_HOUR = 3600.0


class Counted(Protocol):
    """What is priced: a row, or what many took together."""

    @property
    def prompt_tokens(self) -> int:
        """Tokens read."""
        ...

    @property
    def cached_tokens(self) -> int:
        """Those of them that were in a prefix cache."""
        ...

    @property
    def completion_tokens(self) -> int:
        """Tokens written."""
        ...

    @property
    def engine_s(self) -> float:
        """Busy seconds of engines."""
        ...


@dataclass(frozen=True, slots=True)
class TokenRates:
    """What a token costs.

    Attributes:
        input: One that is read.
        output: One that is written.
        cached: One that is read from a prefix cache.
    """

    input: float
    output: float
    cached: float


@dataclass(frozen=True, slots=True)
class Rates:
    """What tokens cost, or a second of the engine's time.

    Attributes:
        cost_per_hour: What one worker costs an hour; None where the template does not say.
        tokens: What tokens cost; None where they are not paid for. They alone count, if given.
    """

    cost_per_hour: float | None = None
    tokens: TokenRates | None = None

    @classmethod
    def of(cls, resources: Resources) -> Self:
        """Returns the prices that a template gives."""
        given = resources.cost_per_token
        if given is None:
            return cls(resources.cost_per_hour)
        cached = given.input if given.cached is None else given.cached
        return cls(tokens=TokenRates(given.input, given.output, cached))

    @property
    def known(self) -> bool:
        """Whether there is a price."""
        return self.tokens is not None or self.cost_per_hour is not None

    def cost(self, counted: Counted) -> float | None:
        """Returns what it costs to have computed this; None without a price."""
        if self.tokens is not None:
            read = counted.prompt_tokens - counted.cached_tokens
            return (
                read * self.tokens.input
                + counted.cached_tokens * self.tokens.cached
                + counted.completion_tokens * self.tokens.output
            )
        if self.cost_per_hour is None:
            return None
        return counted.engine_s / SECONDS_PER_HOUR * self.cost_per_hour

    def of_row(self, row: OutputRow) -> float | None:
        """Returns what it cost to compute a row: nothing, if another one was computed for it."""
        return 0.0 if row.reused and self.known else self.cost(row)


UNPRICED = Rates()
