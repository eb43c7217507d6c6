"""Small charts for Dagster's pages, as Markdown images that hold their own picture.

Dagster shows Markdown of fewer than `INLINE_CHARACTERS` characters where it stands, and the rest
behind a button. So a chart is an SVG of few points. It has no background and colours of middling
lightness, which are readable on a dark page and on a light one.
"""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import quote

INLINE_CHARACTERS = 1000
"""Markdown of as many characters is shown behind a button (dagster-webserver 1.13)."""

_WIDTH = 320
_TOP, _LEFT, _RIGHT, _BOTTOM = 20, 4, 316, 96
_LINE, _TEXT = "#4a86e8", "#888"
_POINTS = 40
_RANKS = 20
_UNENCODED = "/:=',;"


def line_chart(title: str, unit: str, points: Sequence[tuple[float, float]]) -> str:
    """Draws values over steps.

    Args:
        title: What the values are.
        unit: What the horizontal axis counts.
        points: Place and value, in order of place; two at least. Of many, some are drawn.
    """
    shown = _thinned(points)
    (first, _), (last, _) = shown[0], shown[-1]
    values = [value for _, value in shown]
    low, high = min(values), max(values)
    places = [_scaled(x, first, last, _LEFT, _RIGHT) for x, _ in shown]
    heights = [_scaled(y, low, high, _BOTTOM, _TOP) for y in values]
    path = "M" + "L".join(f"{x},{y}" for x, y in zip(places, heights, strict=True))
    drawn = f"<path d='{path}' fill='none' stroke='{_LINE}' stroke-width='2'/>"
    axis = f"{unit} {first:g} to {last:g}"
    return _image(f"{title}: {values[0]:.4g} to {values[-1]:.4g}", axis, drawn, low, high)


def bar_chart(title: str, unit: str, edges: Sequence[float], counts: Sequence[int]) -> str:
    """Draws a distribution; bars are of equal width, whatever the scale of their edges.

    Args:
        title: What was counted.
        unit: Of the edges.
        edges: Of the bars, one more than there are bars.
        counts: Of each bar.
    """
    used = [place for place, count in enumerate(counts) if count]
    start, end = (used[0], used[-1] + 1) if used else (0, len(counts))
    return _bars(title, f"{edges[start]:.3g} to {edges[end]:.3g} {unit}", counts[start:end])


def rank_chart(title: str, counts: Sequence[int]) -> str:
    """Draws how often something stands at rank 1, 2, and so on; of many ranks, the first ones.

    Args:
        title: What was counted.
        counts: Of each rank.
    """
    last = max((rank for rank, count in enumerate(counts, 1) if count), default=1)
    shown = min(last, _RANKS)
    more = f" of {last}" * (last > shown)
    return _bars(title, f"rank 1 to {shown}{more}", counts[:shown])


def _bars(title: str, axis: str, counts: Sequence[int]) -> str:
    most = max(counts, default=0)
    width = (_RIGHT - _LEFT) // max(len(counts), 1)
    bars = [
        f"M{_LEFT + place * width},{_BOTTOM}V{_scaled(count, 0, most, _BOTTOM, _TOP)}h{width - 1}"
        f"V{_BOTTOM}"
        for place, count in enumerate(counts)
        if count
    ]
    drawn = f"<path d='{''.join(bars)}' fill='{_LINE}'/>"
    return _image(title, axis, drawn, 0, most)


def _thinned(points: Sequence[tuple[float, float]]) -> Sequence[tuple[float, float]]:
    if len(points) <= _POINTS:
        return points
    step = (len(points) - 1) / (_POINTS - 1)
    return [points[round(place * step)] for place in range(_POINTS)]


def _scaled(value: float, low: float, high: float, start: int, end: int) -> int:
    share = (value - low) / (high - low) if high > low else 0.5
    return round(start + share * (end - start))


def _image(title: str, axis: str, drawn: str, low: float, high: float) -> str:
    texts = [
        (0, 12, "start", title),
        (_WIDTH, 12, "end", f"max {high:.3g}"),
        (0, _BOTTOM + 16, "start", axis),
        (_WIDTH, _BOTTOM + 16, "end", f"min {low:.3g}"),
    ]
    labels = "".join(
        f"<text x='{x}' y='{y}' text-anchor='{anchor}'>{text}</text>"
        for x, y, anchor, text in texts
    )
    height = _BOTTOM + 20
    svg = (
        f"<svg xmlns='http://www.w3.org/2000/svg' width='{_WIDTH}' height='{height}'"
        f" font-family='sans-serif' font-size='11' fill='{_TEXT}'>{drawn}{labels}</svg>"
    )
    return f"![{title}](data:image/svg+xml,{quote(svg, safe=_UNENCODED)})"
