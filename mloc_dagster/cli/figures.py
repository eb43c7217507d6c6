"""Figures on one line, as many as there is room for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

SEPARATOR = " · "
NARROW_SEPARATOR = "  "


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure in one or more wordings.

    Attributes:
        importance: What is more important is shortened and left out later.
        wordings: From the most explicit to the shortest.
    """

    importance: int
    wordings: tuple[str, ...]


def fit(figures: Sequence[Figure], width: int | None) -> str:
    """Returns the figures in their order, on a line of at most `width` characters.

    All are shortened, and moved together, before one is left out. The most important one stays.

    Args:
        figures: What there is to say.
        width: Characters there are; None is enough for everything.
    """
    shown = dict.fromkeys(range(len(figures)), 0)
    if width is None:
        return _line(figures, shown)
    by_importance = sorted(shown, key=lambda place: figures[place].importance)
    longest = max((len(each.wordings) for each in figures), default=0)
    for shorter in range(1, longest):
        for place in by_importance:
            if len(_line(figures, shown)) <= width:
                return _line(figures, shown)
            shown[place] = min(shorter, len(figures[place].wordings) - 1)
    for place in by_importance[:-1]:
        for separator in (SEPARATOR, NARROW_SEPARATOR):
            if len(line := _line(figures, shown, separator)) <= width:
                return line
        del shown[place]
    return _line(figures, shown)


def _line(figures: Sequence[Figure], shown: dict[int, int], separator: str = SEPARATOR) -> str:
    return separator.join(figures[place].wordings[shorter] for place, shorter in shown.items())
