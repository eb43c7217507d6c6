"""A look at the files that templates name, before anything runs.

Only files of this machine are looked at, and of data the first rows. Addresses of other machines
and hub ids may be slow, or out of reach from here and not from a worker.
"""

from __future__ import annotations

import pathlib
from collections.abc import Iterable, Iterator

from mloc_dagster.compile import CompiledTask, CompiledTemplate, Diagnostic, Path, Tree, at_value
from mloc_dagster.data.dataset import check_hub_id, known_split, open_table
from mloc_dagster.data.documents import document_rows
from mloc_dagster.data.files import is_local, looks_like_files
from mloc_dagster.data.openai_batch import first_request
from mloc_dagster.data.row_shape import RowShape, check_evaluation, with_texts
from mloc_dagster.data.training_rows import evaluation_rows, open_training_rows
from mloc_dagster.errors import DataError, MlocError, nearest_hint
from mloc_dagster.schema import (
    ColumnPartitions,
    DatasetData,
    Documents,
    OpenaiBatchData,
    Partitions,
    RowSpec,
    TrainingData,
    TrainingSpec,
    parse_split,
)

_DATA: Path = ("data",)
_EVALUATION: Path = ("evaluation", "data")
_ELSEWHERE = (
    *(("evaluation", "reference"), ("rerank", "documents_column")),
    *(("judge", "documents_column"), ("judge", "output_column")),
)
"""Keys outside the block that name its columns."""


def look_at_data(templates: Iterable[CompiledTemplate]) -> list[Diagnostic]:
    """Returns what is wrong with the files of templates: each with its place.

    A missing file, model folder, split or column is an error. A file that cannot be read just now
    is a warning.
    """
    findings = (
        found
        for each in templates
        for task in each.tasks
        for found in _look(task, _column_of(each.partitions))
    )
    return list(dict.fromkeys(findings))


def _column_of(partitions: Partitions | None) -> str | None:
    return partitions.column if isinstance(partitions, ColumnPartitions) else None


def _look(task: CompiledTask, selected_by: str | None) -> Iterator[Diagnostic]:
    spec = task.task.spec
    data = with_texts(spec) if isinstance(spec, RowSpec) else getattr(spec, "data", None)
    if selected_by is not None and isinstance(data, DatasetData | TrainingData):
        data = data.model_copy(update={"only": {selected_by: "", **data.only}})
    if isinstance(spec, TrainingSpec):
        yield from _look_at(task, _DATA, data)
        if spec.evaluation is not None:
            yield from _look_at(task, _EVALUATION, spec.evaluation.data)
    else:
        yield from _look_at(task, _DATA, data)
    for path, place in task.places.items():
        if path[:1] not in (_DATA, _EVALUATION[:1], ("rerank",), ("judge",)):
            yield from _look_for(place)


def _look_for(place: Tree) -> Iterator[Diagnostic]:
    """Yields that a model, an adapter or a checkpoint of this machine is not there."""
    named = place.text
    if not named or "${" in named or not is_local(named):
        return
    try:
        file = pathlib.Path(named.removeprefix("file://")).expanduser()
        if file.exists():
            return
        near = [each.name for each in file.parent.iterdir()] if file.parent.is_dir() else []
    except (OSError, RuntimeError, ValueError) as error:  # no name that a file could have
        yield at_value(place, f"{named}: cannot be looked for: {error}")
        return
    hint = nearest_hint(file.name, near)
    guess = hint if hint.endswith("?") else ""  # else it lists whatever lies there
    yield at_value(place, f"{named}: no such file or folder{guess}")


def _look_at(task: CompiledTask, path: Path, data: object) -> Iterator[Diagnostic]:
    match data:
        case DatasetData(url=url) | Documents(url=url) | OpenaiBatchData(url=url):
            field = "url"
        case TrainingData(dataset_name=str(url)):
            field = "dataset_name"
        case _:
            return
    places = {key[-1]: tree for key, tree in task.places.items() if key[:-1] == path}
    places |= {".".join(key): task.places[key] for key in _ELSEWHERE if key in task.places}
    if any("${" in (tree.text or "") for tree in places.values()) or field not in places:
        return  # what a reference means is known when the task starts
    try:
        _open(task, path, data, (field, url))
    except DataError as error:
        yield at_value(places.get(error.field or field, places[field]), str(error))
    except MlocError as error:
        yield at_value(places[field], str(error), "warning")


def _open(task: CompiledTask, path: Path, data: object, address: tuple[str, str]) -> None:
    """Reads the first rows.

    Raises:
        DataError: If there are none, or other ones than the block means.
        TransientError: If they cannot be read now.
    """
    spec, (field, url) = task.task.spec, address
    if isinstance(data, OpenaiBatchData):
        if is_local(url):
            first_request(url)
    elif not looks_like_files(url):
        check_hub_id(url, field)
    elif not is_local(url):
        return
    elif isinstance(data, DatasetData | Documents):
        columns = _open_documents(data) if isinstance(data, Documents) else _open_dataset(data)
        if isinstance(spec, RowSpec) and spec.evaluation is not None:
            check_evaluation(spec.evaluation, columns)
    elif isinstance(spec, TrainingSpec) and isinstance(data, TrainingData):
        evaluation = spec.evaluation if path == _EVALUATION else None
        rows = (
            open_training_rows(data, spec.method)
            if evaluation is None
            else evaluation_rows(evaluation, spec.method)
        )
        if not rows.found:
            raise DataError(f"{url} has no rows", field)


def _open_documents(data: Documents) -> list[str]:
    """Returns the columns that the first document brings along."""
    first = next(document_rows(data).rows, None)
    if first is None:
        raise DataError(f"{data.url} has no documents", "url")
    return list(first.columns or ())


def _open_dataset(data: DatasetData) -> list[str]:
    """Returns the columns that the first rows bring along."""
    table = open_table(data)
    splits = [known_split(part.split, table.splits, data.url) for part in parse_split(data.split)]
    shape = RowShape(data, selects=False)  # those that are selected may come late
    firsts = [next(table.rows(split, shape), None) for split in dict.fromkeys(splits)]
    if all(first is None for first in firsts):
        raise DataError(f"{data.url} has no rows", "url")
    return [name for first in firsts if first is not None for name in first.columns or ()]
