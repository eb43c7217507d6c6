"""Submissions of all kinds, and what their users are told of them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

_SINGLE = """\
apiVersion: mloc/v1
kind: EchoTask
metadata: {{name: {kind}, owner: {run}, labels: {{run: {run}, story: "{number}"}}}}
spec:
  taskType: echo
  data: {{type: list, items: {items}}}
  echo: {echo}
"""

_STAGES = """\
apiVersion: mloc/v1
kind: EchoTask
metadata: {{name: {kind}, owner: {run}, labels: {{run: {run}, story: "{number}"}}}}
spec:
  stages:
    - {{name: first, spec: {{taskType: echo, data: {{type: list, items: {items}}}}}}}
    - name: second
      spec:
        taskType: echo
        data: {{type: list, items: ["${{first.result.items[0].output}}"]}}
"""

SHARES = {
    "plain": 40,
    "keyed": 15,
    "stages": 10,
    "invalid": 10,
    "cancelled": 10,
    "cancelled_retried": 5,
    "errors": 5,
    "dead": 5,
}
"""How common each kind of submission is, in percent."""

_ECHO = {
    # Long enough that a cancellation meets some of them at work.
    "cancelled": "{delay_s: 0.5}",
    "cancelled_retried": "{delay_s: 0.5}",
    "errors": "{poison: [1]}",
    "dead": "{poison: [0], error_budget: 0}",
}


@dataclass(slots=True)
class Story:
    """One submission, and all that its user was told of it.

    Attributes:
        number: Which; its tasks carry it as a label.
        kind: One of `SHARES`.
        items: The rows of its first task.
        answer: `accepted`, `refused`, or `unknown` while nobody answered.
        task_ids: Of each answer that accepted it.
        cancelled: The state that a cancellation was answered with; None without one.
        retries: Retries that were answered with 202.
        unsure: Requests for a retry that may have been heard though no answer came.
        trouble: Answers that should not be.
    """

    number: int
    kind: str
    items: Sequence[str]
    answer: str = "unknown"
    task_ids: set[tuple[str, ...]] = field(default_factory=set)
    cancelled: str | None = None
    retries: int = 0
    unsure: int = 0
    trouble: list[str] = field(default_factory=list)

    def text(self, run: str) -> str:
        """Returns its template."""
        if self.kind == "invalid":
            return f"apiVersion: mloc/v1\nkind: EchoTask\nmetadata: {{name: s{self.number}}}\n"
        form = _STAGES if self.kind == "stages" else _SINGLE
        items = f"[{', '.join(self.items)}]"
        echo = _ECHO.get(self.kind, "{}")
        return form.format(run=run, number=self.number, kind=self.kind, items=items, echo=echo)

    @property
    def expected_tasks(self) -> int:
        """How many tasks it has when it is accepted."""
        return 2 if self.kind == "stages" else 1


def stories(count: int, seed: int) -> list[Story]:
    """Returns submissions of all kinds, mixed."""
    rng = random.Random(seed)
    kinds = rng.choices([*SHARES], [*SHARES.values()], k=count)
    return [
        Story(number, kind, [f"s{number}r{row}" for row in range(3 if kind == "errors" else 2)])
        for number, kind in enumerate(kinds)
    ]
