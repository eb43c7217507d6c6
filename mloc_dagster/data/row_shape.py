"""What a `dataset` block makes of each row of its source: a prompt, and columns that it keeps."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import msgspec

from mloc_dagster.data.formats import choose_column, holds_bytes, holds_image, to_prompt
from mloc_dagster.data.images import Resolve, cell_images, image_reference, with_images
from mloc_dagster.data.selection import UNSELECTED, Selection
from mloc_dagster.errors import DataError, nearest_hint
from mloc_dagster.results import (
    RESERVED_COLUMNS,
    BatchRow,
    Message,
    OutputRow,
    Passage,
    Prompt,
    RowBatch,
    SourceRow,
    column_called,
    free_name,
)
from mloc_dagster.schema import (
    COMPARING_METRICS,
    DatasetData,
    Documents,
    InferenceData,
    JudgeSpec,
    PlaceholderText,
    RerankSpec,
    RowEvaluation,
    RowSpec,
    known_names,
    parse_placeholders,
)

ID_COLUMN = "id"
"""What `id_column` is called in the results."""


class DatasetOfTexts(DatasetData):
    """A dataset whose rows bring along a list of texts, or an answer."""

    texts_column: str | None = None
    """The column with the list."""

    output_column: str | None = None
    """The column with the answer."""

    block: str
    """The block of the task's spec that names them."""


def with_texts(spec: RowSpec) -> InferenceData | Documents | None:
    """Returns the data of a task; its rows bring along the texts and answers that it works on."""
    if not isinstance(spec.data, DatasetData):
        return spec.data
    given = spec.data.model_dump(by_alias=True, exclude_unset=True)
    if isinstance(spec, RerankSpec):
        texts, output, block = spec.rerank.documents_column, None, spec.block_name
    elif isinstance(spec, JudgeSpec):
        texts, output, block = spec.judge.documents_column, spec.judge.output_column, "judge"
    else:
        return spec.data
    return DatasetOfTexts(**given, texts_column=texts, output_column=output, block=block)


@dataclass(frozen=True, slots=True)
class ImageReferences:
    """Stands in a kept column of images until it is known where these lie.

    Attributes:
        count: How many of the row's images are the column's.
    """

    count: int


class RowShape:
    """How the rows of a `dataset` block are made, whatever they come from.

    Args:
        data: The block.
        selects: Whether rows that `only` leaves out become `UNSELECTED`.

    Attributes:
        selection: What `only` asks for.
    """

    def __init__(self, data: DatasetData, *, selects: bool = True) -> None:
        self._data = data
        self._selects = selects and bool(data.only)
        self.selection = Selection(data.only)

    def of(self, columns: Sequence[str], where: str, schema: Any = None) -> RowBuilder:
        """Returns what makes the rows of one file or split.

        Args:
            columns: The columns that it has.
            where: What it is called, for messages.
            schema: Its Arrow schema, where it has one: columns of bytes are kept only if they are
                named, and images by reference unless they are.

        Raises:
            DataError: If the block names a column that is not there, or none where it must.
        """
        data, known = self._data, () if schema is None else schema
        images = {each.name for each in known if holds_image(each.type)} - {*data.image_columns}
        passed_over: set[str | None] = {each.name for each in known if holds_bytes(each.type)}
        passed_over -= {*images, *data.image_columns}
        _check_there(data.image_columns, columns, where, "image_columns", " of images")
        others = [each for each in columns if each not in data.image_columns]
        prompt = self._prompt(others, where)
        self.selection.check_columns(columns, where)
        if data.id_column is not None:
            _check_there((data.id_column,), columns, where, "id_column")
        more = data if isinstance(data, DatasetOfTexts) else None
        texts, output = (None, None) if more is None else (more.texts_column, more.output_column)
        for name, key in ((texts, "documents_column"), (output, "output_column")):
            if more is not None and name is not None:
                _check_there((name,), columns, where, f"{more.block}.{key}")
        if data.keep == "all":
            passed_over |= {texts, output}  # the row has them otherwise
            light = [each for each in columns if each not in passed_over]
            # CSV may have two of a name.
            kept = [each for each in light if columns.count(each) == 1]
            # A row that is its prompt brings nothing else along.
            if set(kept) <= {prompt.only_column}:
                kept = []
        else:
            kept, images = list(data.keep or ()), set()
            _check_there(kept, columns, where, "keep")
        selection = self.selection if self._selects else None
        return RowBuilder(data, prompt, tuple(kept), images, selection, texts, output)

    def types(self, schema: Any, where: str) -> Mapping[str, Any]:
        """Returns the Arrow types of the columns that rows keep, of those that the source knows.

        Args:
            schema: The Arrow schema of the source; None if it has none.
            where: What it is called, for messages.
        """
        if schema is None:
            return {}
        build = self.of(schema.names, where, schema)
        return {
            name: schema.field(source).type
            for name, source in build.shown.items()
            if source not in self._data.image_columns and source not in build.references
        }

    def _prompt(self, columns: Sequence[str], where: str) -> _PromptMaker:
        data = self._data
        try:
            if data.prompt is not None:
                return _FromText(parse_placeholders(data.prompt, columns))
            if data.messages:
                return _FromMessages(
                    [
                        (each.role, parse_placeholders(each.content, columns))
                        for each in data.messages
                    ]
                )
        except DataError as error:
            field = "prompt" if data.prompt is not None else "messages"
            raise DataError(f"{where}: data.{field}: {error}", field) from None
        if columns or data.column:
            return _FromColumn(choose_column(data.column, columns, where))
        return _Nothing()  # only images: the question is the system prompt's


class RowBuilder:
    """Makes the rows of one file or split.

    Attributes:
        needed: The columns that are read.
        required: Those of them that a row may not lack.
        shown: The source's column for each that a row keeps.
        references: Those of them that hold images, which a row keeps by reference.
        takes_batches: Whether rows may come as those of Arrow tables.

    Args:
        data: The block.
        prompt: Makes the prompt.
        kept: Columns that rows bring along.
        images: Columns that hold images, to be kept by reference if at all.
        selection: Which rows are made; None for all.
        texts: The column with a row's texts, which become its passages; None without one.
        output: The column with a row's answer, of which these then are; None without one.
    """

    def __init__(
        self,
        data: DatasetData,
        prompt: _PromptMaker,
        kept: tuple[str, ...],
        images: Collection[str] = (),
        selection: Selection | None = None,
        texts: str | None = None,
        output: str | None = None,
    ) -> None:
        self._prompt = prompt
        self._texts = texts
        self._output = output
        self._selection = selection
        self._images = data.image_columns
        self._id = data.id_column
        self._names = _names(kept, self._id)
        identity = [each for each in (self._id, texts, output) if each is not None]
        read = [*prompt.columns, *self._images, *kept, *identity, *data.only]
        self.needed = tuple(dict.fromkeys(read))
        self.shown = {shown: name for name, shown in self._names.items()}
        if self._id is not None:
            self.shown[ID_COLUMN] = self._id
        self.required = tuple(dict.fromkeys([*prompt.columns, *identity]))
        # A row that waits for its turn in a shuffle would hold all of its batch in memory.
        self.references = frozenset(images).intersection(kept)
        plain = not self._images and not self.references and texts is None and output is None
        self.takes_batches = bool(self.shown) and plain and not data.shuffle
        plain = plain and self._id is None
        self._as_it_is = plain and set(self.needed) == set(kept) == set(self._names.values())

    def __call__(self, row: Mapping[str, object], resolve: Resolve) -> SourceRow:
        """Returns what a row becomes.

        Args:
            row: Values by column.
            resolve: Makes paths of images good everywhere.

        Raises:
            ValueError: If a column is missing, or holds what it cannot.
        """
        if self._selection is not None and not self._selection.takes(row):
            return UNSELECTED
        prompt = self._prompt(row)
        passages = None if self._texts is None else _passages(row, self._texts)
        answer = None
        if self._output is not None:
            answer = OutputRow(0, "", written(row, self._output), retrieved=passages)
            passages = None
        if not self._names and not self._images and self._id is None:
            return SourceRow(prompt, retrieved=passages, answer=answer)
        if self._as_it_is:
            return SourceRow(prompt, columns=row)
        columns: dict[str, object] = {}
        images: list[str] = []
        for name in self._images:
            try:
                found = cell_images(_cell(row, name), resolve)
            except ValueError as error:
                raise ValueError(f"column {name!r}: {error}") from None
            images += found
            columns[name] = ImageReferences(len(found))
        prompt = with_images(prompt, images)
        columns |= {name: image_reference(row.get(name)) for name in self.references}
        values = {**row, **columns}
        kept = {shown: values.get(name) for name, shown in self._names.items()}
        if self._id is not None:
            kept[ID_COLUMN] = _cell(row, self._id)
        return SourceRow(prompt, columns=kept or None, retrieved=passages, answer=answer)

    def of_batch(self, batch: RowBatch) -> Iterator[SourceRow]:
        """Yields what the rows of a batch become, where `takes_batches`.

        Raises:
            ValueError: As for a single row; the rows before it have come.
        """
        table = batch.table.select(list(self.shown.values()))
        kept = RowBatch(table.rename_columns(list(self.shown)))
        if self._selection is None:
            for place, prompt in enumerate(self._prompt.of_batch(batch)):
                yield SourceRow(prompt, columns=BatchRow(kept, place))
            return
        for place, row in enumerate(batch.rows()):
            # One that is left out may hold what is no prompt.
            taken = self._selection.takes(row)
            yield (
                SourceRow(self._prompt(row), columns=BatchRow(kept, place)) if taken else UNSELECTED
            )


def _names(kept: Sequence[str], identity: str | None) -> dict[str, str]:
    """Returns what kept columns are called in the results, where others have names as well."""
    taken = {*RESERVED_COLUMNS, *({ID_COLUMN} if identity not in (None, ID_COLUMN) else ())}
    shown: dict[str, str] = {}
    for name in kept:
        free = free_name(name, taken)
        taken.add(free)
        shown[name] = free
    return shown


class _PromptMaker:
    """Makes the prompt of a row.

    Attributes:
        columns: What it reads.
    """

    columns: tuple[str, ...] = ()

    @property
    def only_column(self) -> str | None:
        """The column that is the prompt, where one is."""
        return None

    def __call__(self, row: Mapping[str, object]) -> Prompt:
        """Returns the prompt.

        Raises:
            ValueError: If a column is missing, or holds what it cannot.
        """
        return ""

    def of_batch(self, batch: RowBatch) -> Iterator[Prompt]:
        """Yields the prompts of a batch's rows; raises the same."""
        return map(self, batch.rows())


class _Nothing(_PromptMaker):
    pass


class _FromColumn(_PromptMaker):
    def __init__(self, column: str) -> None:
        self.columns = (column,)
        self._column = column

    @property
    def only_column(self) -> str | None:
        return self._column

    def __call__(self, row: Mapping[str, object]) -> Prompt:
        return self._made(_cell(row, self._column))

    def of_batch(self, batch: RowBatch) -> Iterator[Prompt]:
        return map(self._made, batch.values(self._column))

    def _made(self, cell: object) -> Prompt:
        if type(cell) is str:
            return cell
        try:
            return to_prompt(cell)
        except ValueError as error:
            raise ValueError(f"column {self._column!r}: {error}") from None


class _FromText(_PromptMaker):
    def __init__(self, text: PlaceholderText) -> None:
        self._text = text
        self.columns = tuple(dict.fromkeys(text.names))

    def __call__(self, row: Mapping[str, object]) -> Prompt:
        return self._text.render({name: written(row, name) for name in self.columns})


class _FromMessages(_PromptMaker):
    def __init__(self, messages: Sequence[tuple[str, PlaceholderText]]) -> None:
        self._messages = messages
        names = [name for _, text in messages for name in text.names]
        self.columns = tuple(dict.fromkeys(names))

    def __call__(self, row: Mapping[str, object]) -> Prompt:
        values = {name: written(row, name) for name in self.columns}
        return [Message(role, text.render(values)) for role, text in self._messages]


def _cell(row: Mapping[str, object], name: str) -> object:
    try:
        return row[name]
    except KeyError:
        raise ValueError(f"no column {name!r}; this row has: {', '.join(row)}") from None


def _passages(row: Mapping[str, object], name: str) -> list[Passage]:
    """Returns a list of texts as passages, numbered from 0.

    Raises:
        ValueError: If the column is missing, or holds something else.
    """
    texts = _cell(row, name)
    if not isinstance(texts, list | tuple):
        reason = f"column {name!r}: expected a list of texts, not {texts!r:.80}"
        raise ValueError(reason)  # noqa: TRY004
    for place, text in enumerate(texts):
        if not isinstance(text, str):
            reason = f"column {name!r}: expected texts, and number {place} is {text!r:.80}"
            raise ValueError(reason)  # noqa: TRY004
    return [Passage(str(place), text) for place, text in enumerate(texts)]


def written(row: Mapping[str, object], name: str) -> str:
    """Returns a cell as it stands within a text: what is no text as JSON.

    Raises:
        ValueError: If the row has no such column.
    """
    cell = _cell(row, name)
    if isinstance(cell, dict | list):
        return msgspec.json.encode(cell, enc_hook=str).decode()
    return str(to_prompt(cell))


def _check_there(
    wanted: Sequence[str], columns: Sequence[str], where: str, field: str, kind: str = ""
) -> None:
    for name in wanted:
        if name not in columns:
            hint = known_names(name, columns, "columns")
            raise DataError(f"{where} has no column {name!r}{kind}{hint}", field)


def with_references(row: SourceRow) -> Mapping[str, Any]:
    """Returns a row's columns, with the images of its prompt where their references belong."""
    columns = row.columns or {}
    if isinstance(row.prompt, str) or isinstance(columns, BatchRow):
        return columns
    if not any(isinstance(value, ImageReferences) for value in columns.values()):
        return columns
    found = _images(row.prompt)
    return {
        name: list(islice(found, value.count)) if isinstance(value, ImageReferences) else value
        for name, value in columns.items()
    }


def _images(messages: Sequence[Message]) -> Iterator[str]:
    for message in messages:
        for part in () if isinstance(message.content, str) else message.content:
            if part.get("type") == "image_url":
                yield part["image_url"]["url"]


def check_evaluation(evaluation: RowEvaluation, columns: Sequence[str]) -> None:
    """Makes sure, before anything is computed, that answers can be scored.

    Raises:
        DataError: If there is no column with the right answers, or with what should be found, or a
            score's name is taken.
    """
    for each in evaluation.row_metrics:
        if each.label in RESERVED_COLUMNS:
            raise DataError(
                f"evaluation: every result has a column {each.label!r}: give the metric"
                f" {each.type!r} another name"
            )
        place = each.reference or evaluation.reference
        if each.type in COMPARING_METRICS and place is not None:
            name = place.split(".")[0]
            if column_called(name, columns) not in columns:
                hint = nearest_hint(name, columns)
                raise DataError(
                    f"rows have no column {name!r} to compare answers with{hint}",
                    "evaluation.reference",
                )
    relevant = evaluation.relevant_column
    if relevant is not None and column_called(relevant.split(".")[0], columns) not in columns:
        name = relevant.split(".")[0]
        raise DataError(
            f"rows have no column {name!r}, which says what should be found"
            f"{nearest_hint(name, columns)}",
            "evaluation.relevant_column",
        )
