"""What tests ask of a table of rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from mloc_dagster.data.dataset import Table
from mloc_dagster.data.row_shape import RowShape
from mloc_dagster.results import Prompt, SourceRow
from mloc_dagster.schema import DatasetData


def rows(table: Table, split: str = "train", **block: object) -> Iterator[SourceRow]:
    """Returns what a `dataset` block makes of a split's rows."""
    data = DatasetData.model_validate({"type": "dataset", "url": "any", **block})
    return table.rows(split, RowShape(data))


def prompts(
    table: Table, split: str, column: str | None, image_columns: Sequence[str] = ()
) -> Iterator[Prompt]:
    """Returns the prompts of a split's rows."""
    return (row.prompt for row in rows(table, split, column=column, image_columns=image_columns))
