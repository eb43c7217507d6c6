"""What an evaluation can measure without anything being registered."""

from __future__ import annotations

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
