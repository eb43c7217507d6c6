"""How a result shows itself in a notebook: its figures, and the first rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from mloc_dagster.display import duration, rate, shorten
from mloc_dagster.results import answer_text

_ROWS = 5
_TEXT = 160
"""Characters of a cell: the rest is in the table."""

_TIMES = ("seconds", "engine_seconds")
_COUNTS = ("rows", "errors", "empty_outputs", "prompt_tokens", "completion_tokens", "steps")


def result_html(
    *,
    name: str,
    task_id: str,
    folder: str,
    metrics: Mapping[str, float],
    columns: Sequence[str],
    tables: Iterable[Any],
) -> str:
    """Returns a result as HTML; whatever models and users wrote is escaped.

    Args:
        name: Its stage or node.
        task_id: The task.
        folder: Where it lies.
        metrics: Its figures.
        columns: Columns to show of the first rows.
        tables: Its rows; none of a training.
    """
    parts = [
        f"<p><b>{escape(name)}</b> <code>{escape(task_id)}</code></p>",
        _figures(metrics),
        _rows(columns, tables),
        f"<p><small>{escape(folder)}</small></p>",
    ]
    return f"<div>{''.join(parts)}</div>"


def _figures(metrics: Mapping[str, float]) -> str:
    if not metrics:
        return "<p>not complete</p>"
    return _table([*metrics], [[_figure(name, value) for name, value in metrics.items()]])


def _figure(name: str, value: float) -> str:
    if name in _TIMES:
        return duration(value)
    if name in _COUNTS:
        return f"{round(value):,}"
    return rate(value) if name.endswith("_per_s") else f"{value:.4g}"


def _rows(columns: Sequence[str], tables: Iterable[Any]) -> str:
    shown: list[dict[str, Any]] = []
    count = 0
    for table in tables:
        count += table.num_rows
        if len(shown) < _ROWS:
            calls = [each for each in ("tool_calls",) if each in table.column_names]
            some = table.select([*columns, "error", *calls]).slice(0, _ROWS - len(shown))
            shown += map(_with_calls, some.to_pylist())
    if not shown:
        return ""
    failed = any(row["error"] is not None for row in shown)
    names = [*columns, "error"] if failed else columns
    rest = count - len(shown)
    note = f"<p><small>… and {rest:,} more rows</small></p>" if rest else ""
    return _table(names, [[_cell(row[name]) for name in names] for row in shown]) + note


def _with_calls(row: dict[str, Any]) -> dict[str, Any]:
    return {**row, "output": answer_text(row["output"], row.get("tool_calls"))}


def _cell(value: object) -> str:
    if value is None:
        return ""
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return shorten(text, _TEXT)


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(each)}</th>" for each in headings)
    cell = '<td style="text-align: left">{}</td>'
    body = "".join(f"<tr>{''.join(cell.format(escape(each)) for each in row)}</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
