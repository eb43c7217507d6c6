"""The columns of a result as Dagster shows them: their types, and the columns they come from."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import cast

import dagster as dg

from mloc_dagster.compile import parse_expression
from mloc_dagster.executors import OpenTask
from mloc_dagster.ops.plan import ROWS
from mloc_dagster.ops.run_tags import op_name
from mloc_dagster.ops.sources import dataset_key
from mloc_dagster.results import MORE_COLUMNS, RESERVED_COLUMNS, ROW_COLUMNS, free_name, read_schema
from mloc_dagster.schema import (
    COLUMN_PREFIX,
    PROMPT_COLUMNS,
    DatasetData,
    Documents,
    GraphTemplateData,
    OpenaiBatchData,
    RowSpec,
    UpstreamData,
    parse_placeholders,
)

COLUMN_SCHEMA, COLUMN_LINEAGE = "dagster/column_schema", "dagster/column_lineage"
"""Under which Dagster looks for the columns of a table, in the metadata of assets."""

Upstream = Callable[[str], dg.AssetKey | None]
"""Which asset an earlier task of the template is; None if it is none."""

Deps = Sequence[dg.TableColumnDep]

UNKNOWN = "as in the data"
"""The type of a column that only the data know."""

_OF_PROMPT = ("prompt", "prompt_sha256")
_VECTOR = "embedding"
_OF_ANSWER = ("output", "outputs", "tool_calls", "reasoning", _VECTOR)


def input_name(node: str) -> str:
    """Returns the input of a task's graph that an earlier task is handed to."""
    return f"in_{op_name(node)}"


def expected_schema(
    spec: RowSpec, upstream: Callable[[str], dg.TableSchema | None]
) -> dg.TableSchema:
    """Returns the columns that a task's rows will have, as far as its template says.

    Args:
        spec: The task's.
        upstream: Those of an earlier task; None of one that leaves no rows.
    """
    columns = [
        _column(name, each.type, nullable=each.nullable) for name, each in ROW_COLUMNS.items()
    ]
    columns += [
        _column(each, MORE_COLUMNS[each].type, nullable=MORE_COLUMNS[each].nullable)
        for each in spec.leaves
    ]
    if spec.leaves_vectors:
        columns.append(_column(_VECTOR, "list<float>"))
    columns += _brought_along(spec, upstream)
    columns += [_column(name, "double") for name in _scores(spec)]
    return dg.TableSchema(columns)


def _brought_along(
    spec: RowSpec, upstream: Callable[[str], dg.TableSchema | None]
) -> list[dg.TableColumn]:
    """Returns the columns that rows are known to bring along before the data are looked at."""
    match spec.data:
        case DatasetData(keep=keep, id_column=identity):
            named = keep if isinstance(keep, tuple) else ()
            kept = [free_name(each, RESERVED_COLUMNS) for each in named]
            return [_column(each, UNKNOWN) for each in (*kept, *(["id"] if identity else []))]
        case Documents(keep=tuple() as named):
            return [_column(free_name(each, RESERVED_COLUMNS), UNKNOWN) for each in named]
        case UpstreamData(node=node, where=where):
            schema = upstream(node)
            known = (
                [] if schema is None else [each for each in schema.columns if _is_own(each.name)]
            )
            return [*([_column("input_index", "int64")] if where else []), *known]
        case _:
            return []


def _is_own(name: str) -> bool:
    """Tells whether a column is none of those that every task's rows have."""
    return name not in ROW_COLUMNS and name not in MORE_COLUMNS and name != _VECTOR


def written_columns(
    opened: OpenTask, inputs: Mapping[str, dg.AssetKey]
) -> dict[str, dg.MetadataValue]:
    """Returns the columns of a result that is there, with their types and where they come from.

    Args:
        opened: The task.
        inputs: The assets that its graph takes, by the names of its inputs.
    """
    schema = read_schema(opened.folder)
    columns = [_column(each.name, str(each.type), nullable=each.nullable) for each in schema]
    found: dict[str, dg.MetadataValue] = {
        COLUMN_SCHEMA: dg.MetadataValue.table_schema(dg.TableSchema(columns))
    }
    lineage = column_lineage(
        opened.spec,
        [each.name for each in columns],
        dataset=dataset_of(opened.spec, inputs),
        upstream=lambda node: inputs.get(input_name(node)),
    )
    if lineage is not None:
        found[COLUMN_LINEAGE] = dg.MetadataValue.column_lineage(lineage)
    return found


def dataset_of(spec: RowSpec, inputs: Mapping[str, dg.AssetKey]) -> dg.AssetKey | None:
    """Returns the asset that a task's rows come from, among those that its graph takes."""
    if not isinstance(spec.data, DatasetData | Documents | OpenaiBatchData):
        return None
    if ROWS in inputs:
        return inputs[ROWS]
    key = dataset_key(spec.data.url)
    return key if key in inputs.values() else None


def column_lineage(
    spec: RowSpec, columns: Iterable[str], *, dataset: dg.AssetKey | None, upstream: Upstream
) -> dg.TableColumnLineage | None:
    """Returns which columns of other assets each column comes from; None if no asset is known.

    Args:
        spec: The task's.
        columns: Those of its rows.
        dataset: The asset that its `data` names.
        upstream: Says which asset an earlier task is.
    """
    names = list(columns)
    scores = _scores(spec)
    carried = [each for each in names if _is_own(each) and each not in scores]
    kept = {each: _origin(spec, each, dataset, upstream) for each in carried}
    read = _read(spec, carried, dataset, upstream)
    found = kept | dict.fromkeys((*_OF_PROMPT, *_OF_ANSWER), read)
    for name, reference in scores.items():
        right = [] if reference is None else kept.get(reference.split(".")[0], [])
        found[name] = list(dict.fromkeys([*read, *right]))
    if isinstance(spec.data, OpenaiBatchData):
        found["custom_id"] = _deps(dataset, "custom_id")
    data = cast("object", spec.data)  # of a chunk task no block that other tasks have
    if isinstance(data, Documents):
        found["custom_id"] = _deps(dataset, data.id_column)
    shown = {name: list(found[name]) for name in names if found.get(name)}
    return dg.TableColumnLineage(shown) if shown else None


def _scores(spec: RowSpec) -> dict[str, str | None]:
    """Returns the columns of a task's scores, each with the one of the right answers."""
    if spec.evaluation is None:
        return {}
    return {
        each.label: each.reference or spec.evaluation.reference
        for each in spec.evaluation.row_metrics
    }


def _read(
    spec: RowSpec, carried: Sequence[str], dataset: dg.AssetKey | None, upstream: Upstream
) -> Deps:
    """Returns what a prompt is made of."""
    match spec.data:
        case DatasetData() as data:
            return _deps(dataset, *_prompt_columns(data, carried), *data.image_columns)
        case Documents(text_column=text):
            return _deps(dataset, text)
        case OpenaiBatchData():
            return _deps(dataset, "body")
        case UpstreamData(node=node, text=text):
            names = parse_placeholders(text, (), "").names
            return _deps(upstream(node), *(each.removeprefix(COLUMN_PREFIX) for each in names))
        case GraphTemplateData(template=template):
            found: list[dg.TableColumnDep] = []
            for column in template.columns:
                reference = parse_expression(column.reference)
                fields = [each for each in reference.path[1:] if isinstance(each, str)]
                named = [each for each in fields if each not in ("*", "columns")]
                found += _deps(upstream(reference.node), *named[:1])
            return list(dict.fromkeys(found))  # two columns may read the same
        case _:
            return []


def _prompt_columns(data: DatasetData, carried: Sequence[str]) -> Sequence[str]:
    if data.column is not None:
        return [data.column]
    texts = [each.content for each in data.messages] if data.prompt is None else [data.prompt]
    if texts:
        return [name for text in texts for name in parse_placeholders(text, (), "").names]
    # It is the one that the task took by itself: known if it is kept.
    originals = [_own_name(data, each) for each in carried]
    usual = [each for each in PROMPT_COLUMNS if each in originals]
    return usual if len(usual) == 1 else []


def _origin(spec: RowSpec, column: str, dataset: dg.AssetKey | None, upstream: Upstream) -> Deps:
    match spec.data:
        case DatasetData() as data:
            return _deps(dataset, _own_name(data, column))
        case Documents():
            bare = column.removeprefix("input_")
            return _deps(dataset, bare if bare in RESERVED_COLUMNS else column)
        case UpstreamData(node=node, where=where):
            return _deps(upstream(node), "index" if where and column == "input_index" else column)
        case _:
            return []


def _own_name(data: DatasetData, column: str) -> str:
    """Returns what a kept column is called in the data."""
    if column == "id" and data.id_column is not None:
        return data.id_column
    bare = column.removeprefix("input_")
    return bare if bare in RESERVED_COLUMNS or bare == "id" else column


def _deps(asset: dg.AssetKey | None, *columns: str) -> list[dg.TableColumnDep]:
    if asset is None:
        return []
    return [dg.TableColumnDep(asset, each) for each in dict.fromkeys(columns)]


def _column(name: str, kind: str, *, nullable: bool = True) -> dg.TableColumn:
    known = ROW_COLUMNS.get(name) or MORE_COLUMNS.get(name)
    about = None if known is None else known.about
    return dg.TableColumn(
        name, kind, description=about, constraints=dg.TableColumnConstraints(nullable=nullable)
    )
