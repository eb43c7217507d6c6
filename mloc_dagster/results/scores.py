"""Scores of answers: functions of texts, each with a number from 0 to 1 where it compares."""

from __future__ import annotations

import json
import re
import string
from collections import Counter
from collections.abc import Callable, Mapping
from math import comb
from typing import Any

from pydantic import JsonValue

_NUMBER = re.compile(
    r"(?:(?<![\w.])[-+\u2212])?"  # of `5-3` the dash is no sign
    r"(?:(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:[eE][-+]?\d+)?|(?<!\d)\.\d+)"
)
_ARTICLES = frozenset({"a", "an", "the"})
_WORD = re.compile(
    # Scripts that put no space between words are compared character by character.
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]"
    "|[^\\s\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
    "\uf900-\ufaff]+"
)
_PUNCTUATION = str.maketrans("", "", string.punctuation + "。，、；：？！“”‘’（）《》「」…—")


def same_text(answer: str, reference: str) -> float:
    """Returns 1 if two texts are equal but for white space around them and upper case."""
    return float(_plain(answer) == _plain(reference))


def holds_text(answer: str, reference: str) -> float:
    """Returns 1 if the reference stands in the answer, whatever its case."""
    return float(_plain(reference) in _plain(answer))


def _plain(text: str) -> str:
    return text.strip().casefold()


def f1(answer: str, reference: str) -> float:
    """Returns the harmonic mean of precision and recall over words, as SQuAD scores answers.

    Case, punctuation and English articles do not count. In scripts without spaces a character is a
    word. Source: Rajpurkar et al., "SQuAD: 100,000+ Questions for Machine Comprehension of Text"
    (2016); MLQA (Lewis et al., 2020) for the scripts.
    """
    given, wanted = _words(answer), _words(reference)
    if not given or not wanted:
        return float(given == wanted)
    common = sum((Counter(given) & Counter(wanted)).values())
    return 2 * common / (len(given) + len(wanted))


def _words(text: str) -> list[str]:
    words = _WORD.findall(text.casefold().translate(_PUNCTUATION))
    return [each for each in words if each not in _ARTICLES]


def last_number(text: str) -> float | None:
    """Returns the last number of a text; None without one. Commas between thousands are none."""
    found = _NUMBER.findall(text)
    return float(found[-1].replace(",", "").replace("\u2212", "-")) if found else None


def same_number(answer: str, reference: str, tolerance: float = 0.0) -> float | None:
    """Returns 1 if the last numbers of two texts are the same; None if the reference has none.

    Args:
        answer: The answer.
        reference: The right one, such as GSM8K's, which ends with `#### 42`.
        tolerance: By how much they may differ.
    """
    wanted, given = last_number(reference), last_number(answer)
    if wanted is None:
        return None
    if given is None:
        return 0.0
    slack = max(tolerance, 1e-9 * max(abs(wanted), abs(given)))  # decimals are binary fractions
    return float(abs(wanted - given) <= slack)


def json_score(schema: Mapping[str, JsonValue] | None = None) -> Callable[[str], float]:
    """Returns what gives a text 1 if it is JSON, and fits the schema if there is one."""
    validator: Any = None
    if schema is not None:
        from jsonschema.validators import validator_for

        validator = validator_for(schema)(schema)

    def score(answer: str) -> float:
        try:
            document = json.loads(answer)
        except ValueError:
            return 0.0
        return float(validator is None or validator.is_valid(document))

    return score


def pass_at(correct: int, answers: int, k: int) -> float:
    """Returns the chance that one of `k` answers, drawn without putting back, is correct.

    Source: Chen et al., "Evaluating Large Language Models Trained on Code" (2021), equation 1.
    """
    return 1.0 - comb(answers - correct, k) / comb(answers, k)


def extracted(pattern: re.Pattern[str], answer: str) -> str:
    """Returns what a pattern finds last: its first group, or all of it; nothing if nowhere."""
    matches = list(pattern.finditer(answer))
    if not matches:
        return ""
    return matches[-1][1 if pattern.groups else 0] or ""
