"""What a task is and how far it is, as its page and the list of tasks show it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Literal

import msgspec
from pydantic import JsonValue, ValidationError

from mloc_dagster.errors import (
    IncompleteResultsError,
    InputError,
    MlocError,
    UnknownNameError,
)
from mloc_dagster.planning import Plan
from mloc_dagster.results import (
    MANIFEST_NAME,
    RECORD_NAME,
    SUMMARY_NAME,
    Folder,
    Part,
    ResultStore,
    TaskRecord,
    TaskSummary,
    TrainingSummary,
    check_task_id,
    list_parts,
    read_batch,
    read_manifest,
    read_plan,
    read_record,
    read_summary,
    read_training,
)

State = Literal["done", "refused", "unfinished", "failed"]
StateOf = Callable[[str], str | None]
"""Returns what a ledger knows of a task; None where there is none, or it does not know the task."""


class Figure(msgspec.Struct):
    """A number at the head of a page.

    Attributes:
        name: What it is.
        value: The number.
        note: What to know about it.
    """

    name: str
    value: float | str
    note: str = ""


class ShardBar(msgspec.Struct):
    """An attempt at a shard, as the names of its part files tell it.

    Attributes:
        shard: The shard.
        attempt: From 1.
        start_ms: When it began, in milliseconds since 1970.
        stop_ms: When its last rows were on the store.
        rows: How many places its files cover.
        total: Rows of the shard; 0 where the plan is not known.
    """

    shard: int
    attempt: int
    start_ms: int
    stop_ms: int
    rows: int
    total: int


class FileLine(msgspec.Struct):
    """A file that can be downloaded."""

    name: str
    size: int


class Training(msgspec.Struct):
    """What a training logged.

    Attributes:
        history: As in `TrainingSummary`.
        before: As in `TrainingSummary`.
        after: As in `TrainingSummary`.
        gate: As in `TrainingSummary`.
    """

    history: tuple[dict[str, float], ...]
    before: dict[str, float] | None
    after: dict[str, float] | None
    gate: str


class TaskView(msgspec.Struct):
    """The head of a task's page.

    Attributes:
        task_id: The task.
        template: The template's name.
        node: Which of its tasks.
        task_type: What it does.
        submitted_at: ISO 8601; empty if its record cannot be read.
        state: `done`; `refused` by its gate; `failed`, or `unfinished` while files are missing.
        said: The state in the ledger's words, where there is a ledger.
        model: What answers; empty if nobody said so yet.
        source: Where its rows come from.
        rows: Planned rows; None before the plan.
        finished: Rows that are there, about: a part file may skip some of those that it spans.
        figures: Numbers for the head of the page.
        shards: Attempts at shards, in order of time.
        files: What can be downloaded.
        training: Of a training that is done.
        reference: The column with the right answers; empty if nothing is compared with any.
        stages: Tasks of the same submission, by node.
        problems: What is damaged or missing, in words.
    """

    task_id: str
    template: str = ""
    node: str = ""
    task_type: str = ""
    submitted_at: str = ""
    state: State = "unfinished"
    said: str = ""
    model: str = ""
    source: str = ""
    rows: int | None = None
    finished: int = 0
    figures: list[Figure] = []
    shards: list[ShardBar] = []
    files: list[FileLine] = []
    training: Training | None = None
    reference: str = ""
    stages: dict[str, str] = {}
    problems: list[str] = []


class _Known:
    """What of a task's files can be read, and what is wrong with the others."""

    def __init__(self, folder: Folder) -> None:
        self.folder = folder
        self.problems: list[str] = []
        self.record: TaskRecord | None = self._read(lambda: read_record(folder), RECORD_NAME)
        self.plan: Plan | None = self._read(lambda: read_plan(folder), "")
        self.summary: TaskSummary | None = self._read(lambda: read_summary(folder), SUMMARY_NAME)
        self.training: TrainingSummary | None = self._read(
            lambda: read_training(folder), "training.json"
        )

    def _read[T](self, read: Callable[[], T], name: str) -> T | None:
        if name and not self.folder.exists(name):
            if name == RECORD_NAME and self.folder.list():
                self.problems.append(f"{name} is missing: nothing says what was submitted")
            return None
        try:
            return read()
        except (MlocError, ValidationError, ValueError) as error:
            self.problems.append(_first_line(error, name))
            return None


def _first_line(error: Exception, name: str) -> str:
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    return f"{name} is damaged: {text}" if isinstance(error, ValidationError) else text


def view_of(folder: Folder, state_of: StateOf) -> TaskView:
    """Reads what the head of a task's page shows."""
    known = _Known(folder)
    record, summary, training = known.record, known.summary, known.training
    view = TaskView(folder.name, problems=known.problems, said=state_of(folder.name) or "")
    if record is not None:
        view.template, view.node = record.template_name, record.node
        view.task_type = record.task_type
        view.submitted_at = record.submitted_at.isoformat()
        view.stages = _stages(folder.store, record)
        evaluation = record.spec.get("evaluation")
        reference = evaluation.get("reference") if isinstance(evaluation, dict) else None
        view.reference = reference.partition(".")[0] if isinstance(reference, str) else ""
    if known.plan is not None:
        view.rows, view.source = known.plan.rows, known.plan.source
    if summary is not None:
        view.model, view.figures = summary.model, [*_row_figures(summary)]
    if training is not None:
        view.model, view.figures = training.model, [*_training_figures(training)]
        view.training = Training(training.history, training.before, training.after, training.gate)
    view.state = _state(folder, known, view.said)
    parts = list_parts(folder)
    view.shards = shard_bars(parts, known.plan)
    view.finished = _finished(parts, known.plan)
    view.files = [FileLine(name, size) for name, size in downloads(folder).items()]
    return view


def _nodes(spec: JsonValue) -> list[JsonValue]:
    """Returns the stages or the nodes of a template's spec."""
    graph = spec.get("graph") if isinstance(spec, dict) else None
    found = graph.get("nodes") if isinstance(graph, dict) else None
    listed = found or (spec.get("stages") if isinstance(spec, dict) else None)
    return listed if isinstance(listed, list) else []


_FAILED = ("FAILED", "DEAD")
"""States of a ledger in which nothing goes on."""


def _state(folder: Folder, known: _Known, said: str) -> State:
    if not folder.exists(MANIFEST_NAME):
        summary = known.summary
        failed = said in _FAILED or (summary is not None and not summary.ok)
        return "failed" if failed else "unfinished"
    scores = known.summary.scores if known.summary is not None else None
    passed = scores is None or scores.passed
    if known.training is not None:
        passed = passed and known.training.passed
    return "done" if passed else "refused"


def _row_figures(summary: TaskSummary) -> Iterable[Figure]:
    yield Figure("rows", summary.rows)
    yield Figure("errors", summary.errors, f"{summary.allowed_errors:,} allowed")
    if summary.budget is not None:
        yield Figure("budget reached", summary.budget.amounts, summary.budget.progress)
    for name, number in summary.counts.items():
        yield Figure(name.replace("_", " "), number)
    for name, mean in (summary.scores.metrics if summary.scores else {}).items():
        scored = summary.scores.scored.get(name.partition("/")[0], 0) if summary.scores else 0
        yield Figure(name, mean, f"mean of {scored:,} rows")
    if summary.empty_outputs:
        yield Figure("empty outputs", summary.empty_outputs)
    usage = summary.usage
    yield Figure("tokens written", usage.completion_tokens, f"{usage.prompt_tokens:,} read")
    yield Figure("tokens/s", round(summary.tokens_per_s, 2))
    yield Figure("seconds", round(usage.latency_sec, 2), f"p95 of a row {summary.latency.p95:.3g}")
    if usage.cost is not None:
        yield Figure("cost", usage.cost)
    if summary.scores is not None and summary.scores.gate:
        yield Figure("gate", summary.scores.gate)


def _training_figures(training: TrainingSummary) -> Iterable[Figure]:
    yield Figure("rows", training.dataset_size, f"{training.bad_rows:,} of no use")
    yield Figure("steps", training.steps)
    if training.loss is not None:
        yield Figure("loss", training.loss, "last one logged")
    yield Figure("seconds", training.seconds)
    yield Figure("device", training.device)
    if training.gate:
        yield Figure("gate", training.gate)


def _stages(store: ResultStore, record: TaskRecord) -> dict[str, str]:
    """Returns the tasks before this one, and those of the same template that have a folder."""
    stages = dict(record.upstream)
    for each in _nodes(record.template.get("spec")):
        name = each.get("name") if isinstance(each, dict) else None
        task_id = f"{record.workflow_id}-{name}"
        if isinstance(name, str) and store.task(task_id).exists(RECORD_NAME):
            stages[name] = task_id
    return {node: task_id for node, task_id in stages.items() if task_id != record.task_id}


def shard_bars(parts: Iterable[Part], plan: Plan | None) -> list[ShardBar]:
    """Returns when which attempt at which shard left rows."""
    totals = {each.index: each.rows for each in plan.shards} if plan is not None else {}
    bars: dict[tuple[int, int], ShardBar] = {}
    for part in parts:
        if part.span is None:
            continue
        key = (part.shard, part.attempt)
        total, rows = totals.get(part.shard, 0), part.last - part.first + 1
        bar = bars.setdefault(key, ShardBar(*key, *part.span, 0, total))
        bar.start_ms, bar.stop_ms = min(bar.start_ms, part.span[0]), max(bar.stop_ms, part.span[1])
        bar.rows = min(bar.rows + rows, total or bar.rows + rows)
    return sorted(bars.values(), key=lambda bar: (bar.start_ms, bar.shard))


def _finished(parts: Iterable[Part], plan: Plan | None) -> int:
    spanned: dict[int, int] = {}
    for part in parts:
        spanned[part.shard] = spanned.get(part.shard, 0) + part.last - part.first + 1
    totals = {each.index: each.rows for each in plan.shards} if plan is not None else {}
    return sum(min(rows, totals.get(shard, rows)) for shard, rows in spanned.items())


def downloads(folder: Folder) -> Mapping[str, int]:
    """Returns the files that a task's page hands out: those that its manifest lists."""
    if not folder.exists(MANIFEST_NAME):
        return {}
    try:
        manifest = read_manifest(folder)
    except IncompleteResultsError:
        return {}
    except MlocError:
        return {}
    found = {
        each.path: each.size
        for each in manifest.entries
        if each.type == "file" and each.status == "present"
    }
    return {**found, MANIFEST_NAME: folder.size(MANIFEST_NAME)}


class TaskLine(msgspec.Struct):
    """A task in the list.

    Attributes:
        task_id: The task.
        template: The template's name.
        node: Which of its tasks.
        task_type: What it does.
        submitted_at: ISO 8601.
        state: As in `TaskView`.
        said: As in `TaskView`.
        rows: How many rows it has; None where nobody knows yet.
        errors: Rows with an error.
        metrics: Means of its scores.
    """

    task_id: str
    template: str = ""
    node: str = ""
    task_type: str = ""
    submitted_at: str = ""
    state: State = "unfinished"
    said: str = ""
    rows: int | None = None
    errors: int | None = None
    metrics: dict[str, float] = {}


def task_lines(folders: Iterable[Folder], state_of: StateOf) -> list[TaskLine]:
    """Returns a line for each task, in order."""
    lines = []
    for folder in folders:
        known = _Known(folder)
        said = state_of(folder.name) or ""
        line = TaskLine(folder.name, state=_state(folder, known, said), said=said)
        if known.record is not None:
            line.template, line.node = known.record.template_name, known.record.node
            line.task_type = known.record.task_type
            line.submitted_at = known.record.submitted_at.isoformat()
        if known.plan is not None:
            line.rows = known.plan.rows
        if known.summary is not None:
            line.errors = known.summary.errors
            line.metrics = dict(known.summary.scores.metrics) if known.summary.scores else {}
        if known.training is not None:
            line.rows, line.metrics = known.training.dataset_size, dict(known.training.after or {})
        lines.append(line)
    return lines


def batch_members(store: ResultStore, batch_id: str) -> list[Folder]:
    """Returns the tasks whose rows a batch computes together.

    Raises:
        UnknownNameError: If there is no such batch.
    """
    try:
        batch = read_batch(store, check_task_id(batch_id))
    except (InputError, FileNotFoundError):
        raise UnknownNameError("batch", batch_id[:200], ()) from None
    return [store.task(each.task_id) for each in batch.members]


def score_names(folder: Folder) -> tuple[str, ...]:
    """Returns the columns that the task's evaluation made."""
    try:
        scores = read_summary(folder).scores if folder.exists(SUMMARY_NAME) else None
    except (MlocError, ValidationError):
        return ()
    return () if scores is None or scores.columns is None else scores.columns.names


def relevant_column(folder: Folder) -> str:
    """Returns the column that names what should be found for a row; empty if there is none.

    Of a template's tasks it is the last one that is evaluated; the rows of those before it bring
    the same columns along.
    """
    try:
        record = read_record(folder) if folder.exists(RECORD_NAME) else None
    except (MlocError, ValidationError):
        return ""
    specs = (
        [] if record is None else [record.spec, *map(_spec, _nodes(record.template.get("spec")))]
    )
    columns = (_relevant(each) for each in specs)
    return next(filter(None, columns), "")


def _spec(node: JsonValue) -> JsonValue:
    return node.get("spec") if isinstance(node, dict) else None


def _relevant(spec: JsonValue) -> str:
    evaluation = spec.get("evaluation") if isinstance(spec, dict) else None
    column = evaluation.get("relevant_column") if isinstance(evaluation, dict) else None
    return column if isinstance(column, str) else ""
