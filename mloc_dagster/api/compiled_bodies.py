"""Templates that came over HTTP, compiled once for all requests that bring the same."""

from __future__ import annotations

import hashlib
import uuid
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from threading import Lock

from pydantic import JsonValue

from mloc_dagster.api.limits import Limits
from mloc_dagster.api.policy import Policy
from mloc_dagster.api.problems import Refusal, finding, invalid_template
from mloc_dagster.compile import (
    CompiledTask,
    CompiledTemplate,
    Diagnostic,
    Tree,
    at_value,
    compile_text,
    indexes_needed,
)
from mloc_dagster.dispatch import batch_key
from mloc_dagster.errors import MissingExtraError, UnknownNameError
from mloc_dagster.executors import task_id_for
from mloc_dagster.index import index_names
from mloc_dagster.ledger import NewTask, Request, Submission
from mloc_dagster.schema import Index, ListData
from mloc_dagster.settings import settings
from mloc_dagster.wire import Finding

_CACHE_BYTES = 32_000_000
"""Of memory, as `_memory` reckons it."""


@dataclass(frozen=True, slots=True)
class _Node:
    task: NewTask
    suffix: str
    slo_s: float | None


@dataclass(frozen=True, slots=True)
class Prepared:
    """A document that can be accepted any number of times.

    Attributes:
        template_name: Its `metadata.name`.
        owner: Its `metadata.owner`.
        labels: Its `metadata.labels`.
        content_hash: Of the document.
        document: The document.
        nodes: Its tasks, without ids.
    """

    template_name: str
    owner: str
    labels: Mapping[str, str]
    content_hash: str
    document: Mapping[str, JsonValue]
    nodes: tuple[_Node, ...]

    def submission(self, request: Request | None) -> Submission:
        """Returns a new submission of it, with new ids."""
        workflow_id = str(uuid.uuid4())
        now = datetime.now(UTC)
        return Submission(
            workflow_id=workflow_id,
            template_name=self.template_name,
            owner=self.owner,
            labels=self.labels,
            content_hash=self.content_hash,
            document=self.document,
            tasks=tuple(_task(each, workflow_id, now) for each in self.nodes),
            request=request,
        )


@dataclass(frozen=True, slots=True)
class PreparedBody:
    """All documents of one body, and what could be better about them."""

    documents: tuple[Prepared, ...]
    warnings: tuple[Finding, ...]
    indexes: tuple[tuple[Index, Tree], ...] = ()
    """Those that have to be there, and where they are named."""


class CompiledBodies:
    """Compiles bodies; keeps the latest by the sha256 of all that matters.

    Args:
        limits: How much a body may hold.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._kept: OrderedDict[bytes, tuple[PreparedBody, int]] = OrderedDict()
        self._bytes = 0
        self._lock = Lock()

    def prepare(self, text: bytes, name: str, uploads: Mapping[str, str]) -> PreparedBody:
        """Returns a body's documents.

        Args:
            text: The YAML.
            name: The file's name, for findings.
            uploads: Addresses of the files that came along, by name.

        Raises:
            Refusal: If any document is wrong or not allowed; carries every finding.
        """
        key = hashlib.sha256(b"\0".join((name.encode(), repr(sorted(uploads.items())).encode())))
        key.update(b"\0" + text)
        body = self.kept(key.digest())
        if body is None:
            body = self._compile(text, name, uploads)
            self._keep(key.digest(), body, len(text))
        check_indexes(body.indexes)  # each time: they come and go
        return body

    def kept(self, key: bytes) -> PreparedBody | None:
        """Returns what is known by a key, which becomes the latest used."""
        with self._lock:
            known = self._kept.get(key)
            if known is None:
                return None
            self._kept.move_to_end(key)
            return known[0]

    def _keep(self, key: bytes, body: PreparedBody, size: int) -> None:
        with self._lock:
            if key not in self._kept:
                self._bytes += _memory(size)
            self._kept[key] = (body, _memory(size))
            while self._bytes > _CACHE_BYTES and len(self._kept) > 1:
                _, (_, freed) = self._kept.popitem(last=False)
                self._bytes -= freed

    def _compile(self, text: bytes, name: str, uploads: Mapping[str, str]) -> PreparedBody:
        policy = Policy(
            remote_code=settings().trust_remote_code,
            uploads=uploads,
        )
        templates, found = compile_text(text, name, policy.apply)
        policy.check_compiled(templates, name)
        unbuilt = [each for template in templates for each in template.unbuilt]
        told = {replace(each, severity="warning") for each in unbuilt}
        found = [*(each for each in found if each not in told), *policy.findings, *unbuilt]
        if any(each.severity == "error" for each in found):
            raise invalid_template(sorted(found, key=lambda each: (each.line, each.column)))
        self._check_size(len(templates), policy.rows)
        warnings = tuple(finding(each) for each in found)
        documents = tuple(_prepared(each) for each in templates)
        return PreparedBody(documents, warnings, tuple(indexes_needed(templates)))

    def _check_size(self, documents: int, rows: int) -> None:
        for number, most, what, setting in (
            (documents, self._limits.documents, "templates", "MLOC_API_MAX_DOCUMENTS"),
            (rows, self._limits.rows, "rows", "MLOC_API_MAX_ROWS"),
        ):
            if number > most:
                detail = f"{number:,} {what} in one request; at most {most:,} ({setting})"
                hint = ": put them into a data file" if what == "rows" else ""
                raise Refusal(413, "too-large", detail + hint)


def check_indexes(needed: Sequence[tuple[Index, Tree]]) -> None:
    """Checks that indexes are there, where mloc keeps them by default.

    Raises:
        Refusal: If one is not; says where it is named, and the nearest.
        TransientError: If nobody can tell now.
    """
    findings: list[Diagnostic] = []
    for index, tree in needed:
        if index.url is not None:
            continue  # whoever plans the task looks there
        try:
            known = index_names(index.engine)
        except MissingExtraError:
            continue  # workers may have the library
        if index.name not in known:
            findings.append(at_value(tree, str(UnknownNameError("index", index.name, known))))
    if findings:
        raise invalid_template(findings)


def _memory(size: int) -> int:
    """Returns what is taken by a body of so many bytes, as measured with 1 to 1,000 rows."""
    return 2_000 + 4 * size


def _prepared(compiled: CompiledTemplate) -> Prepared:
    key = batch_key(compiled)
    nodes = tuple(
        _Node(_new_task(each, key), task_id_for("", compiled, each.task.name), _slo_s(each))
        for each in compiled.tasks
    )
    return Prepared(
        template_name=compiled.metadata.name,
        owner=compiled.metadata.owner or "",
        labels=dict(compiled.metadata.labels),
        content_hash=compiled.content_hash,
        document=compiled.document,
        nodes=nodes,
    )


def _new_task(node: CompiledTask, key: str | None) -> NewTask:
    data = getattr(node.task.spec, "data", None)
    return NewTask(
        task_id="",
        node=node.task.name,
        task_type=node.task.spec.task_type,
        depends_on=node.task.depends_on,
        rows=len(data.items) if isinstance(data, ListData) else None,
        batch_key=key,
    )


def _slo_s(node: CompiledTask) -> float | None:
    slo = node.task.spec.slo
    return None if slo is None else slo.seconds


def _task(node: _Node, workflow_id: str, now: datetime) -> NewTask:
    due = None if node.slo_s is None else now + timedelta(seconds=node.slo_s)
    known = node.task
    return NewTask(
        task_id=workflow_id + node.suffix,
        node=known.node,
        task_type=known.task_type,
        depends_on=known.depends_on,
        rows=known.rows,
        batch_key=known.batch_key,
        due=due,
    )
