"""What the rest of mloc knows of a training method, and what an evaluation of it reads."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from mloc_dagster.errors import DataError
from mloc_dagster.schema.training.cells import read_answer, read_label, read_speech, read_text
from mloc_dagster.schema.training.columns import (
    Columns,
    Layout,
    Record,
    TrainingRow,
    chat_roles,
    described,
    preference_reader,
    simple_layout,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingMethod:
    """A method of training.

    Attributes:
        layout: Reads rows of some columns; raises `DataError` if one that it needs is not there.
        config: TRL's config, whose fields `training` takes; None if the trainer is not TRL's.
        options: What `training` takes where the trainer is not TRL's.
        samples: Whether the model answers prompts itself, and the answers are scored.
        groups: TRL's default of `num_generations`, where answers to a prompt are compared.
        classifies: Whether the result is a classifier, and writes no text.
        in_pairs: Whether a row is two sequences.
        labelled: Whether answers are labelled as good or bad.
        reference_beta: TRL's default of `beta`, where the model is compared with what it was.
        single_process: Whether it cannot train in several processes.
        calls_tools: Whether the model may call tools while it answers.
    """

    layout: Callable[[Columns], Layout]
    config: str | None = None
    options: frozenset[str] = frozenset()
    samples: bool = False
    groups: int | None = None
    classifies: bool = False
    in_pairs: bool = False
    labelled: bool = False
    reference_beta: float | None = None
    single_process: bool = False
    calls_tools: bool = False


_ANSWERS = ("completion", "answer")
"""What a column of right answers is called when the template does not say."""

_REFERENCE_METRICS = frozenset(("loss", "perplexity", "exact_match", "contains"))
_PAIR_METRICS = frozenset(("win_rate", "accuracy"))


def evaluation_layout(columns: Columns, method: TrainingMethod, metrics: Collection[str]) -> Layout:
    """Returns how evaluation rows of these columns are read, whatever the method trains on.

    A row is a comparison, a chat, a whole text, or a prompt with its right answer as `completion`
    where there is one. Columns that have no such part stay in the row: metrics may use them.

    Raises:
        DataError: If a column is missing that the template names or a metric needs.
    """
    data, names = columns.data, columns.names
    answers = columns.given("prompt_column", "response_column")
    if columns.has("chosen_column", "chosen") and columns.has("rejected_column", "rejected"):
        return _with_others(*_comparison(columns))
    _check_pairs(columns, metrics, method)
    if data.messages_column is not None or ("messages" in names and not answers):
        return _simple(chat_roles(columns))
    online = method.samples
    plain = "text" in names and "prompt" not in names and not answers and not online
    if data.text_column is not None or plain:
        return _simple({"text": (columns.choose("text_column", "text"), read_text)})
    return _answers(columns, method, metrics)


def _answers(columns: Columns, method: TrainingMethod, metrics: Collection[str]) -> Layout:
    parts: dict[str, tuple[str, Callable[[object], object]]] = {
        "prompt": (columns.choose_prompt(), read_speech)
    }
    if columns.given("response_column") or not set(_ANSWERS).isdisjoint(columns.names):
        parts["completion"] = (columns.choose("response_column", *_ANSWERS), read_answer)
    elif needing := sorted(_REFERENCE_METRICS.intersection(metrics)):
        raise DataError(
            f"{columns.where}: {', '.join(needing)} compare with right answers; say with "
            f"evaluation.data.response_column which column has them. {columns.listed}"
        )
    if columns.given("label_column") or (method.labelled and "label" in columns.names):
        parts["label"] = (columns.choose("label_column", "label"), read_label)
        return _only_good(_simple(parts))
    return _simple(parts)


def _check_pairs(columns: Columns, metrics: Collection[str], method: TrainingMethod) -> None:
    needing = sorted(_PAIR_METRICS.intersection(metrics))
    if method.classifies:
        needing = sorted({*needing, *metrics})
    if needing:
        raise DataError(
            f"{columns.where}: {', '.join(needing)} compare two answers; say with "
            f"evaluation.data.chosen_column and rejected_column which columns have them. "
            f"{columns.listed}"
        )


def _comparison(
    columns: Columns,
) -> tuple[Mapping[str, str], Callable[[Record], list[TrainingRow]]]:
    roles, read = preference_reader(columns)

    def rows_of(record: Record) -> list[TrainingRow]:
        prompt, chosen, rejected = read(record)
        row = {"chosen": chosen, "rejected": rejected}
        return [row if prompt is None else {"prompt": prompt, **row}]

    return roles, rows_of


def _only_good(layout: Layout) -> Layout:
    """Leaves out answers that are labelled as bad: nothing is to be like them."""

    def rows_of(record: Record) -> list[TrainingRow]:
        return [row for row in layout.rows_of(record) if row["label"]]

    return Layout(f"{layout.words}; only those labelled as good", layout.columns, rows_of)


def _simple(parts: Mapping[str, tuple[str, Callable[[object], object]]]) -> Layout:
    roles = {role: name for role, (name, _) in parts.items()}
    layout = simple_layout(roles, [read for _, read in parts.values()])
    return _with_others(roles, layout.rows_of)


def _with_others(
    roles: Mapping[str, str], rows_of: Callable[[Record], list[TrainingRow]]
) -> Layout:
    mapped = frozenset(roles.values())

    def with_others(record: Record) -> list[TrainingRow]:
        others = {name: value for name, value in record.items() if name not in mapped}
        return [{**others, **row} for row in rows_of(record)]

    return Layout(described(roles), None, with_others)
