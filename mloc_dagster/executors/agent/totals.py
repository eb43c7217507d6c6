"""What a trajectory has taken so far."""

from __future__ import annotations

from dataclasses import dataclass, field

from mloc_dagster.results import ModelTurn, Spend, Steps, ToolCall


@dataclass(slots=True)
class Totals:
    """What a trajectory has taken so far."""

    steps: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    reasoning_tokens: int = 0
    cached_tokens: int = 0
    engine_s: float = 0.0
    failed_calls: int = 0
    calls: list[ToolCall] = field(default_factory=list[ToolCall])

    @property
    def tokens(self) -> int:
        """Tokens read and written."""
        return self.prompt_tokens + self.completion_tokens

    def add_all(self, steps: Steps) -> None:
        """Counts all turns of an agent that answered a call."""
        for turn in steps.turns.values():
            self.add(turn)
        self.failed_calls += sum(each.failed for each in steps.results.values())

    @property
    def spend(self) -> Spend:
        """What of it is paid for."""
        return Spend(self.prompt_tokens, self.cached_tokens, self.completion_tokens, self.engine_s)

    def add(self, turn: ModelTurn) -> None:
        """Counts a turn."""
        self.steps += 1
        self.prompt_tokens += turn.prompt_tokens
        self.completion_tokens += turn.completion_tokens
        self.reasoning_tokens += turn.reasoning_tokens
        self.cached_tokens += turn.cached_tokens
        self.engine_s += turn.engine_s
        self.calls += turn.tool_calls
