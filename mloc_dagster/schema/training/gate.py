"""The gate: the condition on metrics under which a trained model, or a result, is handed on.

    GATE      = CONDITION {"and" CONDITION}
    CONDITION = METRIC OPERATOR (NUMBER | "before" [("+" | "-" | "*") NUMBER])
    OPERATOR  = ">=" | ">" | "<=" | "<" | "==" | "!="

`before` is the same metric before the training. Nothing is evaluated but this. A metric with a
slash is a benchmark's, or the chance of one in several answers, and may hold dashes and `@`:
`task/metric`, `numeric/pass@5`. One without may end with `@` and a number: `recall@5`.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

BUILTIN_METRICS: frozenset[str] = frozenset(
    (
        "loss",
        "perplexity",
        "exact_match",
        "contains",
        "regex",
        "win_rate",
        "accuracy",
    )
)
"""`loss` and `perplexity` of the right answers; the share of the model's own answers that are the
right one (`exact_match`), have it in them (`contains`) or match a pattern (`regex`); the share of
comparisons in which the better answer is likelier (`win_rate`), or gets the higher score of a
reward model (`accuracy`, and `win_rate` too)."""

CLASSIFIER_METRICS: frozenset[str] = frozenset(("loss", "win_rate", "accuracy"))
"""Those that a reward model, which writes no text, can be measured by."""

ANSWERLESS_METRICS: frozenset[str] = frozenset(("loss", "perplexity", "win_rate", "accuracy"))
"""Those for which no model writes an answer."""


_TOKEN = re.compile(
    r"\s*(?:(?P<benchmark>\w[\w.+@-]*(?:/[\w.@-]+)+)"
    r"|(?P<number>\d+(?:\.\d*)?(?:[eE][+-]?\d+)?|\.\d+(?:[eE][+-]?\d+)?)"
    r"|(?P<name>[A-Za-z_][\w.]*(?:@\d+)?)"
    r"|(?P<compare>>=|<=|==|!=|>|<)"
    r"|(?P<sign>[+*-]))"
)
_EXAMPLE = "expected a form such as 'exact_match >= before + 0.05 and loss < 2'"
_SIGNS: Mapping[str, Callable[[float, float], float]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
}


class GateError(ValueError):
    """A text that is no gate; the message says where."""


@dataclass(frozen=True, slots=True)
class Condition:
    """One comparison.

    Attributes:
        metric: What is compared, as it is after the training.
        compare: The operator.
        before: Whether the bound starts from the metric before the training.
        sign: What joins `before` and `number`; empty without a number.
        number: The bound itself, or what is added to or multiplied with `before`.
    """

    metric: str
    compare: str
    before: bool
    sign: str
    number: float

    def check(self, before: Mapping[str, float], after: Mapping[str, float]) -> GateResult:
        """Compares; raises `KeyError` with the metric's name where it was not measured."""
        value = after[self.metric]
        if not self.before:
            bound, shown = self.number, _figure(self.number)
        elif not self.sign:
            bound = before[self.metric]
            shown = _figure(bound)
        else:
            start = before[self.metric]
            bound = _SIGNS[self.sign](start, self.number)
            shown = f"{_figure(start)} {self.sign} {_figure(self.number)}"
        passed = _holds(value, self.compare, bound)
        verdict = "passed" if passed else "failed"
        text = f"{self.metric} {_figure(value)} {self.compare} {shown}: {verdict}"
        return GateResult(passed, text)


@dataclass(frozen=True, slots=True)
class GateResult:
    """What a gate came to.

    Attributes:
        passed: Whether the model may be handed on.
        text: The comparisons with their figures.
    """

    passed: bool
    text: str


@dataclass(frozen=True, slots=True)
class Gate:
    """Comparisons all of which have to hold."""

    conditions: tuple[Condition, ...]

    @property
    def metrics(self) -> frozenset[str]:
        """What has to be measured."""
        return frozenset(each.metric for each in self.conditions)

    @property
    def needs_before(self) -> bool:
        """Whether the model must be measured before its training as well."""
        return any(each.before for each in self.conditions)

    def check(self, before: Mapping[str, float], after: Mapping[str, float]) -> GateResult:
        """Returns whether all comparisons hold; one with a figure that is no number does not.

        Args:
            before: Metrics before the training.
            after: Metrics after it.

        Raises:
            KeyError: With the name of a metric that was not measured.
        """
        results = [each.check(before, after) for each in self.conditions]
        passed = all(each.passed for each in results)
        return GateResult(passed, "; ".join(each.text for each in results))


def parse_gate(text: str) -> Gate:
    """Reads a gate.

    Raises:
        GateError: If the text is none; the message says where and what was expected.
    """
    reader = _Reader(text)
    conditions = [_condition(reader)]
    while reader.more:
        if reader.take("name", "'and' or the end") != "and":
            raise reader.error("'and' or the end", back=True)
        conditions.append(_condition(reader))
    return Gate(tuple(conditions))


class _Reader:
    """The words of a gate, one after the other."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._words = _words(text)
        self._next = 0

    @property
    def more(self) -> bool:
        return self._next < len(self._words)

    def sees(self, kind: str) -> bool:
        return self.more and self._words[self._next][0] == kind

    def take(self, kind: str, expected: str) -> str:
        if not self.sees(kind):
            raise self.error(expected)
        self._next += 1
        return self._words[self._next - 1][1]

    def error(self, expected: str, *, back: bool = False) -> GateError:
        place = self._next - back
        if place < len(self._words):
            _, word, at = self._words[place]
            found = f"{word!r} at position {at + 1}"
        else:
            found = "the end"
        return GateError(f"gate {self._text!r}: expected {expected}, found {found}; {_EXAMPLE}")


def _words(text: str) -> list[tuple[str, str, int]]:
    words: list[tuple[str, str, int]] = []
    at, end = 0, len(text.rstrip())
    while at < end:
        match = _TOKEN.match(text, at)
        if match is None or match.lastgroup is None:
            at += len(text[at:]) - len(text[at:].lstrip())
            raise GateError(f"gate {text!r}: {text[at]!r} at position {at + 1}; {_EXAMPLE}")
        kind = match.lastgroup
        word = ("name" if kind == "benchmark" else kind, match[kind], match.start(kind))
        words.append(word)
        at = match.end()
    return words


def _condition(reader: _Reader) -> Condition:
    metric = reader.take("name", "a metric's name")
    if metric in ("and", "before"):
        raise reader.error("a metric's name", back=True)
    compare = reader.take("compare", "one of >=, >, <=, <, ==, !=")
    if not reader.sees("name"):
        return Condition(metric, compare, before=False, sign="", number=_number(reader))
    if reader.take("name", "a number or 'before'") != "before":
        raise reader.error("a number or 'before'", back=True)
    sign = reader.take("sign", "+, - or *") if reader.sees("sign") else ""
    number = _number(reader) if sign else 0.0
    return Condition(metric, compare, before=True, sign=sign, number=number)


def _number(reader: _Reader) -> float:
    sign = -1.0 if reader.sees("sign") and reader.take("sign", "a number") == "-" else 1.0
    return sign * float(reader.take("number", "a number or 'before'"))


def _holds(value: float, compare: str, bound: float) -> bool:
    if math.isnan(value) or math.isnan(bound):
        return False
    # Shares are binary fractions: 0.3 after 0.2 has to satisfy `>= before + 0.1`.
    equal = math.isclose(value, bound, rel_tol=1e-9, abs_tol=1e-12)
    match compare:
        case "==":
            return equal
        case "!=":
            return not equal
        case ">=":
            return equal or value > bound
        case "<=":
            return equal or value < bound
        case ">":
            return value > bound and not equal
        case _:
            return value < bound and not equal


def _figure(value: float) -> str:
    return f"{value:.6g}"
