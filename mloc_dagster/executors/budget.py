"""Keeping to budgets: what a task may spend over all its workers, and what one row may.

Workers tell each other what they have spent by notes on the store (`results.spend`), about once a
second. Each knows what it has spent itself at once. So a task overshoots by the rows that finish
in that time on other workers, and by those that an engine had in hands.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from math import floor
from types import TracebackType
from typing import Self

import msgspec

from mloc_dagster.planning import Plan, Shard
from mloc_dagster.results import (
    BUDGET_FAULT,
    Folder,
    InputRow,
    OutputRow,
    Rates,
    ShardSpend,
    Span,
    Spend,
    Spent,
    covered_s,
    failed_row,
    first_reached,
    list_parts,
    not_computed,
    read_spend,
    spend_in_parts,
    write_spend,
)
from mloc_dagster.schema import Limits

SHARE_EVERY_S = 1.0
"""How often a worker tells the others what it has spent, and reads their notes."""

REST_PER_LOOK = 4.0
"""On a store where that takes long, the pause is so many times as long."""


class Purse(AbstractContextManager["Purse"]):
    """What a task may still spend, as the worker of one of its shards knows it.

    Args:
        folder: The task's folder.
        plan: The task's plan.
        shard: The shard that is computed here.
        limits: What the task may spend.
        rates: What that is counted in.
        began_s: When this attempt began, in seconds since 1970.
        log: Takes a line when the notes cannot be written or read.
        share_every_s: Seconds between two looks at other workers' notes.
    """

    def __init__(
        self,
        folder: Folder,
        plan: Plan,
        shard: Shard,
        limits: Limits,
        rates: Rates,
        *,
        began_s: float,
        log: Callable[[str], None],
        share_every_s: float = SHARE_EVERY_S,
    ) -> None:
        self._folder = folder
        self._shard = shard
        self._others = [each for each in plan.shards if each.index != shard.index]
        self._limits = limits
        self._rates = rates
        self._began_s, self._clock = began_s, time.monotonic()
        self._log = log
        self._share_every_s = share_every_s
        self._own = Spend()
        self._open: dict[int, Spend] = {}
        self._earlier: list[Span] = []
        self._notes: dict[int, ShardSpend] = {}
        self._elsewhere = Spend()
        self._reached = ""
        self._lock = threading.Lock()
        self._ending = threading.Event()
        self._sharer = threading.Thread(
            target=self._share_often, name=f"spend-{shard.key}", daemon=True
        )

    def __enter__(self) -> Self:
        parts = list_parts(self._folder)
        own = (each for each in parts if each.shard == self._shard.index)
        self._own, self._earlier = spend_in_parts(self._folder, own)
        for shard in self._others:
            # Notes may be behind after a kill, by no more than what a worker may overshoot anyway.
            note = read_spend(self._folder, shard)
            if note is None:
                left = [each for each in parts if each.shard == shard.index]
                spend, spans = spend_in_parts(self._folder, left)
                note = ShardSpend(spend, [(each.start_s, each.stop_s) for each in spans])
            self._notes[shard.index] = note
        self._add_up()
        self._tell()
        self.reached()
        self._sharer.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._ending.set()
        self._sharer.join()
        self._tell()

    def add(self, row: OutputRow) -> None:
        """Counts a row that was computed here."""
        with self._lock:
            self._open.pop(row.index, None)
            self._own.add(row)

    def open(self, index: int, spend: Spend) -> None:
        """Takes what a row that is not finished has taken by now."""
        with self._lock:
            self._open[index] = spend

    def taken(self, index: int) -> Spend:
        """Returns what a row that is not finished has taken."""
        with self._lock:
            return self._open.get(index, Spend())

    def reached(self) -> str:
        """Returns why nothing more is computed, as the error of rows; empty while something is.

        Once reached, a budget stays so for this attempt.
        """
        if not self._reached:
            name = first_reached(self._limits, self.spent())
            if name is not None:
                self._reached = not_computed(name, self._limits.given[name])
        return self._reached

    def spent(self) -> Spent:
        """Returns what the task has spent, as far as is known here."""
        with self._lock:
            total = self._spent_here()
            total.plus(self._elsewhere)
            notes = list(self._notes.values())
        if self._limits.seconds is None:
            return Spent.of(total, 0.0, self._rates)
        others = [Span(*each) for note in notes for each in note.spans]
        return Spent.of(total, covered_s([*self._spans(), *others]), self._rates)

    def rows(self, rows: Iterable[InputRow]) -> Iterator[InputRow]:
        """Passes rows on until the budget is reached."""
        for row in rows:
            if self.reached():
                return
            yield row

    def _spans(self) -> list[Span]:
        now_s = self._began_s + time.monotonic() - self._clock  # the time of day may jump
        return [*self._earlier, Span(self._began_s, now_s)]

    def _tell(self) -> None:
        spans = [(each.start_s, each.stop_s) for each in self._spans()]
        with self._lock:
            note = ShardSpend(self._spent_here(), spans)
        write_spend(self._folder, self._shard, note)

    def _spent_here(self) -> Spend:
        total = Spend()
        for each in (self._own, *self._open.values()):
            total.plus(each)
        return total

    def _look(self) -> None:
        found = {shard.index: read_spend(self._folder, shard) for shard in self._others}
        with self._lock:
            self._notes |= {index: note for index, note in found.items() if note is not None}
        self._add_up()

    def _add_up(self) -> None:
        total = Spend()
        for note in self._notes.values():
            total.plus(note.spend)
        with self._lock:
            self._elsewhere = total

    def _share_often(self) -> None:
        rest_s = self._share_every_s
        while not self._ending.wait(rest_s):
            began = time.monotonic()
            try:
                self._tell()
                self._look()
            except Exception as error:  # noqa: BLE001 - tried again; rows need the store as well
                self._log(f"what was spent cannot be shared: {type(error).__name__}: {error}")
            rest_s = max(self._share_every_s, REST_PER_LOOK * (time.monotonic() - began))


class NoPurse(AbstractContextManager["NoPurse"]):
    """Stands in where a task has no budget."""

    def __exit__(self, *_: object) -> None:
        """Ends nothing."""

    def add(self, row: OutputRow) -> None:
        """Counts nothing."""

    def open(self, index: int, spend: Spend) -> None:
        """Counts nothing."""

    def taken(self, index: int) -> Spend:
        """Returns nothing."""
        return Spend()

    def reached(self) -> str:
        """Returns that more may be computed."""
        return ""

    def rows(self, rows: Iterable[InputRow]) -> Iterator[InputRow]:
        """Passes rows on."""
        return iter(rows)


def unaffordable_row(row: InputRow, reason: str, taken: Spend) -> OutputRow:
    """Returns the output of a row that is not computed, or not to its end, for the task's budget.

    Args:
        row: The input; one that could not be computed anyway keeps its own error.
        reason: As `Purse.reached` gives it.
        taken: What was computed of it: it has been spent.
    """
    if row.error is not None:
        return failed_row(row, row.error)
    if taken.tokens:
        reason = reason.replace("not computed", "not finished", 1)
    return msgspec.structs.replace(
        failed_row(row, reason),
        fault=BUDGET_FAULT,
        prompt_tokens=taken.prompt_tokens,
        cached_tokens=taken.cached_tokens,
        completion_tokens=taken.completion_tokens,
        engine_s=taken.engine_s,
    )


def most_new_tokens(limits: Limits, rates: Rates, prompt_tokens: int) -> int | None:
    """Returns how many tokens a row may write; None without a limit.

    Args:
        limits: Of a row.
        rates: What its tokens cost.
        prompt_tokens: Tokens of its prompt; they are paid for as none of a prefix cache.

    Raises:
        ValueError: If its prompt alone is more than the row may spend.
    """
    rooms: list[int] = []
    if limits.tokens is not None:
        if prompt_tokens > limits.tokens:
            raise ValueError(_too_long("tokens", limits.tokens, prompt_tokens, prompt_tokens))
        rooms.append(limits.tokens - prompt_tokens)
    if limits.cost is not None and rates.tokens is not None:
        left = limits.cost - prompt_tokens * rates.tokens.input
        if left < 0:
            cost = prompt_tokens * rates.tokens.input
            raise ValueError(_too_long("cost", limits.cost, prompt_tokens, cost))
        if rates.tokens.output:
            # What a price in binary lacks to a whole token is no token less.
            rooms.append(floor(left / rates.tokens.output + 1e-9))
    return min(rooms) if rooms else None


def seconds_spent(limit: float) -> str:
    """Returns the error of a row that took longer than it may."""
    return f"ended after the {limit:g} s that a row may take (budget.per_row.seconds)"


def _too_long(name: str, limit: float, prompt_tokens: int, spent: float) -> str:
    what = f" cost {spent:.6g}" if name == "cost" else ""
    return (
        f"the prompt's {prompt_tokens:,} tokens{what} are more than the row may spend "
        f"(budget.per_row.{name}: {limit:g})"
    )
