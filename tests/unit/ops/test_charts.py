"""Charts of Dagster's pages: short enough to be shown at once, whole SVG, the right extremes."""

from __future__ import annotations

from urllib.parse import unquote
from xml.etree import ElementTree

import pytest

from mloc_dagster.ops.charts import INLINE_CHARACTERS, bar_chart, line_chart, rank_chart

SVG = "{http://www.w3.org/2000/svg}"


def drawn(markdown: str) -> ElementTree.Element:
    address = markdown.partition("](")[2].removesuffix(")")
    assert not set(address) & set(' <>()"')  # Markdown would end the address there
    return ElementTree.fromstring(unquote(address.removeprefix("data:image/svg+xml,")))


def texts(markdown: str) -> list[str | None]:
    return [each.text for each in drawn(markdown).iter(f"{SVG}text")]


def path(markdown: str) -> str:
    (found,) = drawn(markdown).iter(f"{SVG}path")
    return found.attrib["d"]


@pytest.mark.parametrize("count", [2, 40, 41, 10_000])
def test_a_line_goes_from_the_first_step_to_the_last_and_stays_short(count: int) -> None:
    points = [(float(step), 1234.5678 / (step + 1)) for step in range(count)]
    chart = line_chart("rewards/accuracies", "step", points)
    assert len(chart) < INLINE_CHARACTERS
    assert path(chart).startswith("M4,20L")
    assert path(chart).endswith("L316,96")
    title, high, axis, low = texts(chart)
    assert title == f"rewards/accuracies: 1235 to {points[-1][1]:.4g}"
    assert (high, axis) == ("max 1.23e+03", f"step 0 to {count - 1:g}")
    assert low == f"min {points[-1][1]:.3g}"


def test_a_value_that_does_not_change_is_a_line_in_the_middle() -> None:
    assert path(line_chart("loss", "step", [(0, 1.0), (5, 1.0)])) == "M4,58L316,58"


def test_a_distribution_shows_what_lies_between_its_first_row_and_its_last() -> None:
    edges = [0.001 * 2**place for place in range(41)]
    counts = [0] * 3 + [5, 0, 10] + [0] * 34
    chart = bar_chart("Rows by latency", "seconds a row", edges, counts)
    assert texts(chart) == ["Rows by latency", "max 10", "0.008 to 0.064 seconds a row", "min 0"]
    assert path(chart) == "M4,96V58h103V96M212,96V20h103V96"


def test_the_widest_distribution_stays_short() -> None:
    edges = [0.001 * 1.5**place for place in range(31)]
    chart = bar_chart("Rows by latency", "seconds a row", edges, list(range(1000, 1030)))
    assert len(chart) < INLINE_CHARACTERS


def test_ranks_begin_with_the_first_and_end_with_the_last_that_is_taken() -> None:
    chart = rank_chart("First relevant", [0, 4, 2, 0, 0])
    assert texts(chart) == ["First relevant", "max 4", "rank 1 to 3", "min 0"]
    assert path(chart) == "M108,96V20h103V96M212,96V58h103V96"
    assert texts(rank_chart("First relevant", [0, 0]))[2] == "rank 1 to 1"
    wide = rank_chart("First relevant", range(1, 1001))
    assert len(wide) < INLINE_CHARACTERS
    assert texts(wide)[2] == "rank 1 to 20 of 1000"
