"""Checks of one compiled task: its engine's abilities, its artifacts, its data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from pydantic import JsonValue

from mloc_dagster.compile.compiled import split_string
from mloc_dagster.compile.diagnostics import Findings, at_key, at_value, find
from mloc_dagster.compile.effects import Effects
from mloc_dagster.compile.tree import Path, Tree
from mloc_dagster.errors import DataError, InputError, nearest_hint
from mloc_dagster.schema import (
    BATCH_ERRORS_NAME,
    BATCH_OUTPUT_NAME,
    CHECKPOINTS_NAME,
    COLUMN_PREFIX,
    FINAL_LORA,
    FINAL_MODEL,
    UPSTREAM_VALUES,
    AgentSpec,
    ChatMessage,
    DatasetData,
    Documents,
    FileRef,
    GraphTemplateData,
    InferenceSpec,
    ListData,
    ModelSpec,
    RowFilterError,
    RowSpec,
    TaskSpec,
    TemplateColumn,
    TextPart,
    TrainingData,
    TrainingSpec,
    UpstreamData,
    artifact_name,
    find_task_type,
    hub_only,
    marked,
    names_files,
    parse_filter,
    parse_placeholders,
    refusals,
    written_as_file,
)

FORM_MAY_BREAK = (
    "an answer that a stop string ends may lack the rest of its form: structured_outputs alone "
    "ends each answer where its form is complete"
)

NO_ADAPTERS = "a task of type {!r} has none: adapters answer with text"


def check_engine(spec: Tree, typed: TaskSpec, findings: Findings) -> None:
    """Adds what no engine, or not the one the template names, can do.

    Args:
        spec: The task's spec as it was written, merged with its base.
        typed: The same, typed.
        findings: Takes errors, and a warning about forms that may break.
    """
    if not isinstance(typed, ModelSpec):
        return
    for each in refusals(typed):
        place = nearest(spec, each.path)
        findings.add((at_key if each.at_key else at_value)(place, each.reason))
    if isinstance(typed, InferenceSpec):
        if typed.inference.structured_outputs is not None and typed.inference.stop:
            place = nearest(spec, ("inference", "stop"))
            findings.add(at_value(place, FORM_MAY_BREAK, "warning"))
    elif typed.ability != "generate" and typed.model.adapters:
        reason = NO_ADAPTERS.format(typed.task_type)
        findings.add(at_value(nearest(spec, ("model", "adapters")), reason))


TWO_PRICES = (
    "cost_per_hour is there, too: a task is paid for by its tokens or by its workers' time. Leave "
    "out one of them, or write cost_per_hour: null where a base sets it"
)
NO_PRICE = (
    "nothing tells what the task costs: give resources.cost_per_token {input, output} or "
    "resources.cost_per_hour"
)
UNPRICED_ROWS = (
    "what a row costs is known in time only where tokens have a price: give "
    "resources.cost_per_token {input, output}, or budget.cost for the whole task"
)


def check_budget(spec: Tree, typed: TaskSpec, findings: Findings) -> None:
    """Adds prices that contradict each other, and limits that nothing could keep.

    Args:
        spec: The task's spec as it was written, merged with its base.
        typed: The same, typed.
        findings: Takes the errors.
    """
    prices = typed.resources
    priced_twice = prices.cost_per_token is not None and prices.cost_per_hour is not None
    if priced_twice:
        findings.add(at_key(nearest(spec, ("resources", "cost_per_token")), TWO_PRICES))
    if not isinstance(typed, RowSpec):
        return
    budget = typed.budget
    if prices.cost_per_token is None and prices.cost_per_hour is None:
        if budget.cost is not None:
            findings.add(at_key(nearest(spec, ("budget", "cost")), NO_PRICE))
        for place in _costs_of_rows(typed):
            findings.add(at_key(nearest(spec, place), NO_PRICE))
    for name in budget.per_row.given:
        place = nearest(spec, ("budget", "per_row", name))
        if name not in typed.row_limits:
            kept = ", ".join(sorted(typed.row_limits)) or "none"
            message = f"a task of type {typed.task_type!r} cannot end a row by its {name}"
            findings.add(at_key(place, f"{message}; limits of its rows: {kept}"))
        elif name == "cost" and prices.cost_per_token is None:
            findings.add(at_key(place, UNPRICED_ROWS))


def _costs_of_rows(typed: TaskSpec) -> list[Path]:
    """Returns where an agent task says what a row, or a worker's call, may cost."""
    if not isinstance(typed, AgentSpec):
        return []
    found: list[Path] = []
    if typed.agent.budget.cost is not None:
        found.append(("agent", "budget", "cost"))
    for number, tool in enumerate(typed.agent.tools):
        if tool.agent is not None and tool.agent.budget.cost is not None:
            found.append(("agent", "tools", number, "agent", "budget", "cost"))
    return found


def nearest(tree: Tree, path: Path) -> Tree:
    """Returns the value at a path below, or the innermost that is there on the way."""
    for length in range(len(path), 0, -1):
        found = find(tree, path[:length])
        if found is not None:
            return found
    return tree


_EVERY_TASK = frozenset(
    {"task.json", "plan.json", "responses.json", "manifest.json", "input", "shards", "logs"}
)


def check_artifacts(spec: Tree, typed: TaskSpec, effects: Effects) -> None:
    """Notes which artifacts a task will make, and which not.

    Args:
        spec: The task's spec as it was written, merged with its base.
        typed: The same, typed.
        effects: Takes both.
    """
    listed = find(spec, ("output", "artifacts"))
    if listed is None:
        return
    trains = isinstance(typed, TrainingSpec)
    made = _of_training(typed) if trains else _of_rows(typed)
    for item, name in zip(listed.items, typed.output.artifacts, strict=True):
        meant = artifact_name(name, _final(typed)) if trains else name.rstrip("/")
        if meant.split("/")[0] in made:
            effects.read(item)
        else:
            message = f"no task of this template makes {name!r}{nearest_hint(name, made)}"
            effects.idle(item, at_value(item, message, "warning"))


def _of_rows(typed: TaskSpec) -> frozenset[str]:
    formats = set(typed.output.formats)
    batch = {BATCH_OUTPUT_NAME, BATCH_ERRORS_NAME} if "openai_batch" in formats else set[str]()
    files = {f"responses.{each}" for each in formats - {"openai_batch"}}
    own = find_task_type(typed.task_type).files
    return _EVERY_TASK | files | batch | own | {"summary.json"}


def _of_training(typed: TrainingSpec) -> frozenset[str]:
    made = _EVERY_TASK | {"training.json"}
    if typed.training.save_strategy != "no":
        made |= {CHECKPOINTS_NAME}
    if typed.training.save_model:
        made |= {_final(typed), "archives"}
    return made | {"evaluation-before.json"} if typed.evaluation is not None else made


def _final(typed: TaskSpec) -> str:
    adapts = isinstance(typed, TrainingSpec) and typed.lora is not None
    return FINAL_LORA if adapts else FINAL_MODEL


EMPTY_PROMPT = "an empty prompt gives no answer: write some text, or remove the item"
NO_MESSAGES = "an empty list of chat messages: expected at least one {role, content}"

_DATA: Path = ("data",)
_EVALUATION: Path = ("evaluation", "data")
_COLUMNS: tuple[Path, ...] = (("rerank",), ("judge",))
"""Blocks that name columns beside those."""


def check_data(spec: Tree, typed: TaskSpec, findings: Findings) -> None:
    """Adds what would keep a task from reading its rows.

    Args:
        spec: The task's spec as it was written, merged with its base.
        typed: The same, typed.
        findings: Takes the errors.
    """
    if isinstance(typed, TrainingSpec):
        _check_training(spec, _DATA, typed.data, findings)
        if typed.evaluation is not None:
            _check_training(spec, _EVALUATION, typed.evaluation.data, findings)
        return
    block = find(spec, _DATA)
    data = getattr(typed, "data", None)
    if block is None:
        return
    match data:
        case ListData():
            needs_text = isinstance(typed, ModelSpec)
            _check_items(block, data, findings, needs_text=needs_text)
        case DatasetData():
            _check_dataset(block, data, findings)
        case Documents(url=url):
            _check_address(block, ("url", "name"), url, findings)
        case GraphTemplateData():
            _check_columns(block, data.template.columns, findings)
            labels = [column.label for column in data.template.columns]
            if data.template.text is not None:
                _check_text(nearest(block, ("template", "text")), labels, findings)
        case UpstreamData():
            _check_upstream(block, findings)
        case _:
            pass


def data_places(spec: Tree) -> dict[Path, Tree]:
    """Returns the values of the blocks that name data and its columns, by their path in the spec.

    Of a list, which may be long, only the place.
    """
    return {
        (*path, key): replace(child, content=[]) if isinstance(child.content, list) else child
        for path in (_DATA, _EVALUATION, _EVALUATION[:1], *_COLUMNS)
        if (block := find(spec, path)) is not None
        for key, child in block.fields.items()
        if not isinstance(child.content, dict)
    }


def file_places(
    spec: Tree, block: type[TaskSpec], mapping: Mapping[str, JsonValue]
) -> dict[Path, Tree]:
    """Returns the values that name files outside the data blocks, by their path in the spec.

    Args:
        spec: The task's spec, merged with its base.
        block: What it is typed as.
        mapping: The spec without positions.
    """
    rest = {name: value for name, value in mapping.items() if name != "data"}
    found: dict[Path, Tree] = {}
    for path, value, marker, _ in marked(block, rest):
        place = find(spec, path)
        if not isinstance(marker, FileRef) or path[:2] == _EVALUATION or place is None:
            continue
        kind = find(spec, (*path[:-1], "type"))
        is_path = marker.anchored or (kind is not None and kind.content == "local")
        if marker.among_texts:
            is_path = written_as_file(str(value))
        elif str(value).startswith(("/", "./", "../", "~")):
            is_path = True
        if is_path:
            found[path] = place
    return found


def _check_training(spec: Tree, path: Path, data: TrainingData, findings: Findings) -> None:
    block = find(spec, path)
    if block is None:
        return
    _check_where(block, findings)
    if data.dataset_name is not None:
        _check_address(block, ("dataset_name", "config_name"), data.dataset_name, findings)


def _check_address(block: Tree, names: tuple[str, str], url: str, findings: Findings) -> None:
    if "${" in url or not names_files(url):
        return
    for name in (names[1], "revision"):
        given = find(block, (name,))
        if given is not None and given.content is not None:
            findings.add(at_value(given, hub_only(name, names[0], url)))


def _check_dataset(block: Tree, data: DatasetData, findings: Findings) -> None:
    _check_address(block, ("url", "name"), data.url, findings)
    messages: list[Path] = [("messages", place, "content") for place in range(len(data.messages))]
    for path in (("prompt",), *messages):
        text = find(block, path)
        if text is not None and text.content is not None:
            _check_text(text, (), findings, open_prefix="")  # the source says which columns it has


def _check_items(block: Tree, data: ListData, findings: Findings, *, needs_text: bool) -> None:
    for place, item in enumerate(data.items):
        message = None
        if not item and not isinstance(item, str):
            message = NO_MESSAGES
        elif needs_text and _is_blank(item):
            message = EMPTY_PROMPT
        if message is not None:
            findings.add(at_value(nearest(block, ("items", place)), message))


def _is_blank(item: str | tuple[ChatMessage, ...]) -> bool:
    if isinstance(item, str):
        return not item.strip()
    if any(message.tool_calls for message in item):
        return False
    contents = (message.content or "" for message in item)
    return all(
        not content.strip()
        if isinstance(content, str)
        else all(isinstance(part, TextPart) and not part.text.strip() for part in content)
        for content in contents
    )


def _check_columns(block: Tree, columns: Iterable[TemplateColumn], findings: Findings) -> None:
    first: dict[str, int] = {}
    for place, column in enumerate(columns):
        if first.setdefault(column.label, place) != place:
            at = nearest(block, ("template", "columns", place, "label"))
            message = (
                f"the label {column.label!r} is column {first[column.label]}'s: give each column "
                "a label of its own"
            )
            findings.add(at_value(at, message))


def _check_upstream(block: Tree, findings: Findings) -> None:
    text = find(block, ("text",))
    if text is not None:
        _check_text(text, UPSTREAM_VALUES, findings, COLUMN_PREFIX)
    _check_where(block, findings)


def _check_where(block: Tree, findings: Findings) -> None:
    where = find(block, ("where",))
    if where is not None and where.text is not None and "${" not in where.text:
        try:
            parse_filter(where.text)
        except RowFilterError as error:
            findings.add(at_value(where, str(error)))


def _check_text(
    text: Tree, known: Iterable[str], findings: Findings, open_prefix: str | None = None
) -> None:
    """Adds what is wrong with the placeholders of a text, beside its references."""
    try:
        parse_placeholders(_without_references(str(text.content)), known, open_prefix)
    except DataError as error:
        findings.add(at_value(text, str(error)))
    except InputError:
        pass  # a broken reference is an error of its own, told where references are checked


def _without_references(text: str) -> str:
    if "${" not in text:
        return text
    pieces = {"text": "{}", "environment": "${{{}}}", "reference": ""}
    return "".join(pieces[part.kind].format(part.text) for part in split_string(text))
