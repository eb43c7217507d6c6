"""Pictures of a result."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from mloc_dagster.results import Latencies

_WIDTH, _HEIGHT = 6.0, 2.4
_BINS = 20


def plot_latencies(latency: Latencies) -> Figure:
    """Draws how long rows took."""
    figure, (axes,) = _axes(1)
    edges = latency.edges_s
    widths = [right - left for left, right in pairwise(edges)]
    axes.bar(edges[:-1], latency.counts, width=widths, align="edge")
    axes.set_xscale("log")
    axes.set_xlabel("seconds per row")
    axes.set_ylabel("rows")
    return figure


def plot_scores(table: Any, means: Mapping[str, float]) -> Figure:
    """Draws how the scores of rows are distributed.

    Args:
        table: An Arrow table with a column for each score.
        means: The scores' means, by name.
    """
    figure, every = _axes(len(table.column_names))
    for name, axes in zip(table.column_names, every, strict=True):
        values = [each for each in table[name].to_pylist() if each is not None]
        axes.hist(values, bins=_BINS)
        axes.set_xlabel(f"{name}, mean {means.get(name, 0):.4g}")
        axes.set_ylabel("rows")
    return figure


def plot_curves(curves: Mapping[str, Sequence[tuple[float, float]]]) -> Figure:
    """Draws figures over the steps of a training, by name."""
    figure, every = _axes(len(curves))
    for (name, points), axes in zip(curves.items(), every, strict=True):
        steps, values = zip(*points, strict=True)
        axes.plot(steps, values)
        axes.set_ylabel(name)
        axes.set_xlabel("step")
    return figure


def _axes(count: int) -> tuple[Figure, Sequence[Any]]:
    figure = _shown_figure()(figsize=(_WIDTH, _HEIGHT * count), layout="constrained")
    return figure, [figure.add_subplot(count, 1, place + 1) for place in range(count)]


@cache
def _shown_figure() -> type[Figure]:
    """Returns a figure that notebooks show, without pyplot, which would keep every one."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    class ShownFigure(Figure):
        def _repr_png_(self) -> bytes:
            picture = io.BytesIO()
            FigureCanvasAgg(self).print_png(picture)
            return picture.getvalue()

    return ShownFigure
