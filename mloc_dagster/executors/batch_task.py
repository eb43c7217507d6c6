"""Small tasks computed as one, and what each of them gets of the result."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import lru_cache

import msgspec
from pydantic import JsonValue

from mloc_dagster.compile import CompiledTask, CompiledTemplate, compile_mapping
from mloc_dagster.data import spool_input
from mloc_dagster.errors import IncompleteResultsError, MlocError
from mloc_dagster.events import Payload, SloMiss
from mloc_dagster.executors.shard_run import worker_name
from mloc_dagster.executors.task_start import (
    OpenTask,
    input_of,
    open_task,
    seed_of,
    start_task,
    task_record,
)
from mloc_dagster.net import Reach
from mloc_dagster.planning import Plan, cut_shards
from mloc_dagster.results import (
    MANIFEST_NAME,
    RECORD_NAME,
    Batch,
    Folder,
    Member,
    MemberOutcome,
    OutputRow,
    Rates,
    ResultStore,
    aggregate_rows,
    budget_problem,
    deliver,
    export_results,
    keep_to_model,
    part_name,
    read_manifest,
    read_record,
    refused_by_gate,
    write_manifest,
    write_record,
)
from mloc_dagster.schema import ListData, RowSpec, canonical_json

ROWS_OF_A_SHARD = 64
"""Rows for which another shard of a batch is worth its overhead."""

_MOST_SHARDS = 8

_NO_PLACE = (NotADirectoryError, IsADirectoryError, FileExistsError, PermissionError)
"""What a member's own destination may be to blame for; a full disk, say, is everybody's."""


def start_batch(batch: Batch, run_id: str) -> tuple[OpenTask, Plan]:
    """Starts a batch as one task with the rows of all; what is already there is kept.

    Raises:
        MlocError: As `start_task`.
    """
    first = _compiled(_text(batch.members[0].document))
    items = [item for each in batch.members for item in _items(each)]
    shards = min(_MOST_SHARDS, -(-len(items) // ROWS_OF_A_SHARD))
    spec = _shared(first.tasks[0])
    spec["data"] = {"type": "list", "items": items}
    spec["parallel"] = {"max_shards": shards}
    document: dict[str, JsonValue] = {
        "apiVersion": "mloc/v1",
        "kind": first.kind,
        "metadata": {"name": "batch"},
        "spec": spec,
    }
    return start_task(
        document, "batch", workflow_id=batch.task_id, run_id=run_id, upstream={}, origin="api"
    )


def node_of(member: Member) -> str:
    """Returns what a member's template calls its task."""
    return _compiled(_text(member.document)).tasks[0].task.name


def start_of(member: Member) -> Payload:
    """Returns what is said of a member when it is begun, as of a task of its own."""
    slo = _spec_of(member).slo
    if slo is None:
        return Payload(rows=member.rows)
    due = member.submitted_at + timedelta(seconds=slo.seconds)
    return Payload(rows=member.rows, slo_s=slo.seconds, due=due)


def miss_of(member: Member, ended: datetime) -> Payload | None:
    """Returns by how much a member that ended missed its SLO; None if it did not."""
    slo = _spec_of(member).slo
    elapsed = (ended - member.submitted_at).total_seconds()
    if slo is None or elapsed <= slo.seconds:
        return None
    late = round(elapsed - slo.seconds, 3)
    miss = SloMiss(seconds=slo.seconds, elapsed_s=round(elapsed, 3), late_s=late)
    return Payload(reason="ended late", slo=miss)


@lru_cache(maxsize=1024)
def _compiled(document: str) -> CompiledTemplate:
    return compile_mapping(json.loads(document))


def _text(document: Mapping[str, JsonValue]) -> str:
    return canonical_json(document)


def _items(member: Member) -> list[JsonValue]:
    data = _spec_of(member).data
    if not isinstance(data, ListData):
        raise TypeError(f"{member.task_id} has no list of rows")
    return data.model_dump(mode="json")["items"]


def _spec_of(member: Member) -> RowSpec:
    return _spec(_compiled(_text(member.document)))


def _spec(compiled: CompiledTemplate) -> RowSpec:
    return compiled.tasks[0].task.spec  # type: ignore[return-value]  such are batched


def _shared(task: CompiledTask) -> dict[str, JsonValue]:
    """Returns the spec but for what each task has of its own."""
    own = ("data", "output", "slo", "sloSeconds", "deadlineSeconds", "parallel")
    shared = {name: each for name, each in task.mapping.items() if name not in own}
    spec = task.task.spec
    if isinstance(spec, RowSpec) and spec.error_budget:
        # Whether a task may have failed rows is judged task by task.
        given = shared.get(spec.block_name)
        shared[spec.block_name] = {
            **(given if isinstance(given, dict) else {}),
            "error_budget": 1,
        }
    return shared


@dataclass(frozen=True, slots=True)
class MemberResults:
    """Gives members their own results.

    Attributes:
        store: Where to write them.
        batch: The batch.
        run_id: The Dagster run.
        began: When the first of its rows were begun.
        ended: When the last were there.
        rows: All rows that were computed, by place.
    """

    store: ResultStore
    batch: Batch
    run_id: str
    began: datetime
    ended: datetime
    rows: Mapping[int, OutputRow]
    _unfinished: dict[str, ResultStore] = field(default_factory=dict, init=False)

    def give(self, member: Member) -> MemberOutcome:
        """Writes what a member would have had of its own; the manifest appears with `finish`.

        What another attempt at this run has finished stays: somebody may be reading it.
        """
        rows = [self._own(member, place) for place in range(member.rows)]
        errors = sum(row.error is not None for row in rows)
        worker = next((row.worker for row in reversed(rows) if row.worker), None)
        known = {"rows": len(rows), "errors": errors, "worker_id": worker}
        try:
            why = "" if self._is_written(member) else self._give(member, rows)
        except MlocError as error:
            why = str(error)
        state = "DEAD" if why else "DONE"
        return MemberOutcome(task_id=member.task_id, state=state, error=why, **known)

    def _own(self, member: Member, place: int) -> OutputRow:
        return msgspec.structs.replace(self.rows[member.first + place], index=place, place=-1)

    def _is_written(self, member: Member) -> bool:
        folder = self.store.task(member.task_id)
        if not (folder.exists(MANIFEST_NAME) and folder.exists(RECORD_NAME)):
            return False
        try:
            read_manifest(folder)
        except IncompleteResultsError:  # damaged: its disk lost power before it was settled
            return False
        return read_record(folder).run_id == self.run_id

    def _give(self, member: Member, rows: Sequence[OutputRow]) -> str:
        store = self.store.staged()
        folder = store.task(member.task_id)
        why = self._write(member, folder, rows)
        if not why:
            write_manifest(folder, _spec_of(member).output.artifacts)
            self._unfinished[member.task_id] = store
        store.flush(but=[f"{member.task_id}/{MANIFEST_NAME}"])
        return why

    def _write(self, member: Member, folder: Folder, rows: Sequence[OutputRow]) -> str:
        """Returns why the task failed; empty if it did not."""
        for left in folder.list():
            folder.delete(left)  # somebody was interrupted who did the same
        compiled = _compiled(_text(member.document))
        spec, node = _spec(compiled), compiled.tasks[0]
        record = task_record(
            member.task_id, compiled, node, member.task_id, self.run_id, {}, origin="api"
        )
        write_record(folder, record.model_copy(update={"submitted_at": member.submitted_at}))
        plan = spool_input(
            member.task_id,
            input_of(spec),
            folder,
            1,
            seed_of(spec),
            {},
            evaluation=spec.evaluation,
        )
        self._write_rows(folder, plan, rows)
        keep_to_model(folder, rows[-1].revision, accept_changed=True)  # the batch did
        model = open_task(self.batch.task_id)
        summary = aggregate_rows(
            folder,
            plan,
            model=model.model_name,
            revision=model.model_revision,
            worker_id=worker_name(),
            started_at=self.began,
            error_budget=spec.error_budget,
            now=self.ended,
            rates=Rates.of(spec.resources),
            evaluation=spec.evaluation,
            metadata={
                "template": compiled.metadata.name,
                "node": node.task.name,
                "batch": self.batch.batch_id,
            },
        )
        if not summary.ok:
            first = next(iter(summary.first_errors), None)
            return budget_problem(
                summary.errors,
                summary.rows,
                summary.allowed_errors,
                None if first is None else (first.index, first.error or ""),
                again=f"mloc retry --failed-rows {member.task_id}",
            )
        if summary.scores is not None and not summary.scores.passed:
            return refused_by_gate(summary.scores)
        export_results(
            folder,
            plan,
            spec.output.formats,
            model=model.model_name,
            revision=model.model_revision,
            rates=Rates.of(spec.resources),
            submitted_at=member.submitted_at,
            vectors=spec.leaves_vectors,
            leaves=spec.leaves,
        )
        return ""

    def finish(self, member: Member, outcome: MemberOutcome) -> MemberOutcome:
        """Shows the manifest of a member that is done, once its files are durable, and delivers.

        Returns:
            What became of it in the end.
        """
        if outcome.state != "DONE":
            return outcome
        if store := self._unfinished.pop(member.task_id, None):
            store.flush()
        try:
            self._deliver(member)
        except (MlocError, *_NO_PLACE) as error:
            return outcome.model_copy(update={"state": "DEAD", "error": str(error)})
        return outcome

    def _deliver(self, member: Member) -> None:
        folder = self.store.task(member.task_id)
        spec = _spec_of(member)
        manifest = read_manifest(folder)
        wanted = [each.path for each in manifest.entries if each.required]
        present = {each.path for each in manifest.entries if each.status != "missing"}
        artifacts = [each for each in wanted if each in present]
        destination = spec.output.destination
        deliver(folder, member.task_id, destination, artifacts, reach=Reach("api"))

    def _write_rows(self, folder: Folder, plan: Plan, rows: Sequence[OutputRow]) -> None:
        (shard,) = cut_shards(plan.task_id, len(rows), 1)
        unique = hashlib.sha256(self.batch.batch_id.encode()).hexdigest()[:8]
        span = (round(self.began.timestamp() * 1000), round(self.ended.timestamp() * 1000))
        data = msgspec.json.Encoder().encode_lines(rows)
        name = part_name(shard, 0, len(rows) - 1, rows[0].attempt, unique, span, data)
        folder.write_bytes(name, data)
