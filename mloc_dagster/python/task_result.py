"""What a task left, for a program and for whoever looks at it in a notebook."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mloc_dagster.errors import DataError, InputError, nearest_hint
from mloc_dagster.results import (
    SUMMARY_NAME,
    TRAINING_NAME,
    Folder,
    TaskRecord,
    TaskSummary,
    TrainingSummary,
    read_plan,
    read_record,
    read_summary,
    read_tables,
    read_training,
)
from mloc_dagster.schema import RowFilter, RowFilterError, parse_filter

if TYPE_CHECKING:
    import pandas as pd  # pyright: ignore[reportMissingTypeStubs, reportMissingImports]
    import polars as pl
    import pyarrow as pa  # pyright: ignore[reportMissingTypeStubs]
    from matplotlib.figure import Figure


class Result:
    """The result of one task. Its rows are read when they are asked for.

    Args:
        folder: The task's folder.
        tasks: The results of all tasks of the same template, by stage or node, this one included;
            by default this one alone.

    Attributes:
        task_id: The task.
        folder: Where all that it left lies.
    """

    def __init__(self, folder: Folder, tasks: Mapping[str, Result] | None = None) -> None:
        self.task_id = folder.name
        self.folder = folder.url
        self._folder = folder
        self._tasks = tasks

    def __repr__(self) -> str:
        figures = ", ".join(f"{name}={value:.4g}" for name, value in self.metrics.items())
        return f"Result({self.task_id!r}, {figures})"

    def _repr_html_(self) -> str:
        from mloc_dagster.python.html import result_html

        return result_html(
            name=self.name,
            task_id=self.task_id,
            folder=self.folder,
            metrics=self.metrics,
            columns=["index", "prompt", "output", *self.score_names, *self.input_columns],
            tables=() if self.training is not None else self._tables(),
        )

    @property
    def tasks(self) -> Mapping[str, Result]:
        """The results of all tasks of the template, by stage or node, in order."""
        return {self.name: self} if self._tasks is None else dict(self._tasks)

    @property
    def name(self) -> str:
        """Its stage or node."""
        return self._record.node

    @property
    def workflow_id(self) -> str:
        """What all tasks of the template share; `mloc.run(resume=…)` takes it."""
        return self._record.workflow_id

    @cached_property
    def _record(self) -> TaskRecord:
        return read_record(self._folder)

    @cached_property
    def summary(self) -> TaskSummary | None:
        """Counts, tokens, speed, latencies and scores; None before all rows are there."""
        return read_summary(self._folder) if self._folder.exists(SUMMARY_NAME) else None

    @cached_property
    def training(self) -> TrainingSummary | None:
        """What came of a training; None of another task."""
        return read_training(self._folder) if self._folder.exists(TRAINING_NAME) else None

    @property
    def has_rows(self) -> bool:
        """Whether any of its rows is there."""
        return next((table.num_rows for table in self._tables() if table.num_rows), 0) > 0

    @property
    def metrics(self) -> Mapping[str, float]:
        """Its figures by name: scores of its evaluation first, then counts, tokens and time.

        A training has its trainer's figures, and `before/NAME` and `after/NAME` of its evaluation.
        """
        if self.training is not None:
            return _training_metrics(self.training)
        return {} if self.summary is None else _metrics(self.summary)

    def table(self, columns: Sequence[str] | None = None, *, where: str | None = None) -> pa.Table:
        """Returns the rows as an Arrow table, in input order, with what they brought along.

        Args:
            columns: Which columns; all by default.
            where: Only rows for which this holds, such as `f1 < 0.5 and level in ["hard"]`.

        Raises:
            InputError: If `where` is no condition, or names a column that is not there.
        """
        import pyarrow as pa  # pyright: ignore[reportMissingTypeStubs]

        arrow: Any = pa
        # What the condition reads need not be among the columns that are wanted.
        tables = self._tables(None if where is not None else columns)
        found = arrow.concat_tables([_filtered(each, where) for each in tables])
        return found if columns is None or where is None else _selected(found, columns)

    def rows(
        self, *, error: bool | None = None, where: str | None = None
    ) -> Iterator[dict[str, Any]]:
        """Yields the rows as dictionaries, in input order; one batch of them is in memory.

        Args:
            error: Whether to yield rows that failed (True), those that did not (False), or all.
            where: Only rows for which this holds, as for `table`.

        Raises:
            InputError: If `where` is no condition, or names a column that is not there.
        """
        return (
            row
            for table in self._tables()
            for row in _filtered(table, where).to_pylist()
            if error is None or (row["error"] is not None) is error
        )

    def worst(self, metric: str, rows: int = 10) -> pa.Table:
        """Returns the rows with the lowest scores, the lowest first; those without a score never.

        Args:
            metric: The score's column.
            rows: How many.

        Raises:
            InputError: If there is no such column.
        """
        table: Any = self.table()
        _check_columns(table, [metric])
        scored = table.filter(table[metric].is_valid())
        return scored.sort_by([(metric, "ascending"), ("index", "ascending")]).slice(0, rows)

    def to_pandas(self, *, where: str | None = None) -> pd.DataFrame:
        """Returns the rows as a pandas data frame.

        Raises:
            ModuleNotFoundError: If pandas is not installed.
        """
        _needs("pandas")
        return self.table(where=where).to_pandas()

    def to_polars(self, *, where: str | None = None) -> pl.DataFrame:
        """Returns the rows as a polars data frame.

        Raises:
            ModuleNotFoundError: If polars is not installed.
        """
        _needs("polars")
        import polars as pl

        frame = pl.from_arrow(self.table(where=where))
        if not isinstance(frame, pl.DataFrame):
            raise TypeError("a table becomes a data frame")
        return frame

    def export(self, target: str | Path, *, where: str | None = None) -> Path:
        """Writes the rows, with all columns, into a file of one's own; returns where it is.

        Args:
            target: Its name; the ending says the format: `.parquet`, `.jsonl` or `.csv`.
            where: Only rows for which this holds, as for `table`.

        Raises:
            InputError: If the ending is none of these, or `where` is no condition.
        """
        from mloc_dagster.python.saving import write_tables

        return write_tables((_filtered(each, where) for each in self._tables()), Path(target))

    def plot(self, metric: str | None = None) -> Figure:
        """Draws how scores are distributed; without an evaluation how long rows took.

        A training's figure shows what it logged over its steps.

        Args:
            metric: Which score; by default all.

        Raises:
            InputError: If there is no such score, or nothing to draw.
        """
        from mloc_dagster.python.plot import plot_curves, plot_latencies, plot_scores

        training, summary = self.training, self.summary
        if training is not None:
            logged = dict.fromkeys(name for entry in training.history for name in entry)
            curves = {name: training.series(name) for name in logged if name != "step"}
            curves = {name: points for name, points in curves.items() if len(points) > 1}
            names = _chosen(curves, metric)
            if names:
                return plot_curves({name: curves[name] for name in names})
        elif names := _chosen(self.score_names, metric):
            return plot_scores(self.table(names), self.metrics)
        elif summary is not None:
            return plot_latencies(summary.latency)
        raise InputError(f"task {self.task_id} left nothing that could be drawn")

    @property
    def score_names(self) -> tuple[str, ...]:
        """The columns that hold scores."""
        scores = None if self.summary is None else self.summary.scores
        return () if scores is None or scores.columns is None else tuple(scores.columns.names)

    @property
    def input_columns(self) -> tuple[str, ...]:
        """The columns that the rows brought along."""
        plan = read_plan(self._folder)
        return () if plan is None or plan.columns is None else tuple(plan.columns.names)

    def _tables(self, columns: Sequence[str] | None = None) -> Iterator[Any]:
        tables = read_tables(self._folder)
        for table in tables:
            yield table if columns is None else _selected(table, columns)


def results_of(folders: Sequence[Folder]) -> list[Result]:
    """Returns the results of the tasks of one template, each of which knows the others."""
    known: dict[str, Result] = {}
    for each in folders:
        found = Result(each, known)
        known[found.name] = found
    return list(known.values())


def _needs(package: str) -> None:
    from importlib.util import find_spec

    if find_spec(package) is None:
        raise ModuleNotFoundError(f"this needs {package}: pip install {package}", name=package)


def _metrics(summary: TaskSummary) -> dict[str, float]:
    usage = summary.usage
    scores = {} if summary.scores is None else dict(summary.scores.metrics)
    figures: dict[str, float | None] = {
        "rows": summary.rows,
        "errors": summary.errors,
        "empty_outputs": summary.empty_outputs,
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "seconds": usage.latency_sec,
        "rows_per_s": summary.rows_per_s,
        "tokens_per_s": summary.tokens_per_s,
        "engine_seconds": usage.engine_seconds,
        "cost": usage.cost,
    }
    known = {name: value for name, value in figures.items() if value is not None}
    return {**scores, **{name: value for name, value in known.items() if name not in scores}}


def _training_metrics(training: TrainingSummary) -> dict[str, float]:
    found = dict(training.metrics)
    for when, measured in (("before", training.before), ("after", training.after)):
        found |= {f"{when}/{name}": value for name, value in (measured or {}).items()}
    return found | {"steps": training.steps, "seconds": training.seconds}


def _filtered(table: Any, where: str | None) -> Any:
    if where is None:
        return table
    chosen = _condition(where)
    try:
        chosen.check(table.column_names)
        read: Any = table.select([each for each in table.column_names if each in chosen.names])
        kept = [chosen.holds(row) for row in read.to_pylist()] if chosen.names else None
    except DataError as error:
        raise InputError(f"where: {error}") from None
    if kept is None:
        return table if chosen.holds({}) else table.slice(0, 0)
    import pyarrow as pa  # pyright: ignore[reportMissingTypeStubs]

    arrow: Any = pa
    return table.filter(arrow.array(kept, arrow.bool_()))


def _condition(where: str) -> RowFilter:
    try:
        return parse_filter(where)
    except RowFilterError as error:
        raise InputError(f"where: {error}") from None


def _chosen(known: Iterable[str], wanted: str | None) -> list[str]:
    names = list(known)
    if wanted is None:
        return names
    if wanted not in names:
        raise InputError(f"there is no figure {wanted!r} of rows{nearest_hint(wanted, names)}")
    return [wanted]


def _selected(table: Any, columns: Sequence[str]) -> Any:
    _check_columns(table, columns)
    return table.select(list(columns))


def _check_columns(table: Any, columns: Sequence[str]) -> None:
    for name in columns:
        if name not in table.column_names:
            hint = nearest_hint(name, table.column_names)
            raise InputError(f"rows have no column {name!r}{hint}")
