"""Writing a shard's rows as they finish; notes of rows in flight and of the answering model.

A shard's folder `shards/NNNN/` holds part files, each with some rows in order of place. Its name
says what is inside, and when: `part-<first place>-<last place>-<attempt>-<began>-<written>-
<unique>-c<crc32>.jsonl`, the times in milliseconds since 1970. It never changes once written:
equal names mean equal rows. `part_files` reads the rows, `aggregate` the times.

A template names a model, and what lies under that name may change between two attempts: files are
trained again, a branch moves. Rows of two models in one result would say nothing about either.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from types import TracebackType
from typing import Self

import msgspec
from pydantic import BaseModel, ConfigDict, ValidationError

from mloc_dagster.errors import InputError
from mloc_dagster.planning import Shard
from mloc_dagster.results.batched_writer import BatchedWriter
from mloc_dagster.results.part_files import (
    FinishedRows,
    finished_rows,
    list_parts,
    part_name,
    read_rows,
    read_shard,
)
from mloc_dagster.results.rows import OutputRow
from mloc_dagster.results.store import Folder

__all__ = ["FinishedRows", "ShardWriter", "finished_rows", "read_rows", "read_shard"]


class ShardWriter:
    """Collects finished rows and writes them in small atomic files; safe to use from threads.

    Leaving the block writes what is left, whatever ended it: finished rows are never lost to an
    error or an interrupt elsewhere.

    Args:
        folder: The task's folder.
        shard: The shard that the rows belong to.
        attempt: Which attempt writes, from 1.
        flush_rows: Rows that may wait.
        flush_interval_s: Seconds that a row may wait, also when none follows it.
        began: When the attempt began, for the time that the task takes; unknown by default.
        clock: Seconds since any moment; the time of day may jump while rows are computed.
        began_s: What the clock said when the attempt began; what it says now by default.
    """

    def __init__(
        self,
        folder: Folder,
        shard: Shard,
        attempt: int,
        *,
        flush_rows: int,
        flush_interval_s: float,
        began: datetime | None = None,
        clock: Callable[[], float] = time.monotonic,
        began_s: float | None = None,
    ) -> None:
        self._folder = folder
        self._shard = shard
        self._attempt = attempt
        self._began = began
        self._clock, self._began_s = clock, clock() if began_s is None else began_s
        self._encoder = msgspec.json.Encoder()
        self._batches = BatchedWriter(
            self._write_part, f"flush-{shard.key}", most=flush_rows, interval_s=flush_interval_s
        )

    def __enter__(self) -> Self:
        self._batches.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._batches.__exit__(kind, error, traceback)

    def write(self, row: OutputRow) -> None:
        """Takes a finished row; raises what an earlier write in the background met.

        Raises:
            ValueError: If the row is not of this shard.
        """
        place = row.index if row.place < 0 else row.place
        if not self._shard.start <= place < self._shard.stop:
            raise ValueError(
                f"row {row.index} is not in shard {self._shard.key}, "
                f"which holds {self._shard.start} to {self._shard.stop - 1}"
            )
        self._batches.add((place, self._encoder.encode(row)))

    def flush(self) -> None:
        """Writes what waits. After a failure the rows wait on, and the next flush takes them."""
        self._batches.flush()

    def _write_part(self, rows: list[tuple[int, bytes]]) -> None:
        rows = sorted(rows, key=lambda row: row[0])
        span = None
        if self._began is not None:
            written = self._began + timedelta(seconds=self._clock() - self._began_s)
            span = (_ms(self._began), _ms(written))
        data = b"\n".join([*(line for _, line in rows), b""])
        first, last, unique = rows[0][0], rows[-1][0], secrets.token_hex(4)
        name = part_name(self._shard, first, last, self._attempt, unique, span, data)
        self._folder.write_bytes(name, data)


def _ms(moment: datetime) -> int:
    return round(moment.timestamp() * 1000)


class InFlight(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a worker has in hands; written before the engine gets it.

    Attributes:
        rows: Indexes of the rows that may be computed at this moment.
        suspects: Indexes of further rows that a worker had in hands when it died.
        deaths: How many workers died with a row alone in hands, by its index.
        convicted: Digests of the rows that two workers died with.
    """

    rows: list[int] = []
    suspects: list[int] = []
    deaths: dict[int, int] = {}
    convicted: list[str] = []


def read_in_flight(folder: Folder, shard: Shard) -> InFlight | None:
    """Returns the note of an attempt that had no orderly end; None when there is none."""
    try:
        return msgspec.json.decode(folder.read_bytes(_name(shard)), type=InFlight)
    except (FileNotFoundError, msgspec.DecodeError):
        return None  # a note that cannot be read accuses nobody


def write_in_flight(folder: Folder, shard: Shard, note: InFlight) -> None:
    """Replaces the note."""
    folder.write_bytes(_name(shard), msgspec.json.encode(note))


def delete_in_flight(folder: Folder, shard: Shard) -> None:
    """Removes the note: the attempt came to an orderly end."""
    folder.delete(_name(shard))


def _name(shard: Shard) -> str:
    return f"shards/{shard.key}/in-flight.json"


ANSWERING_NAME = "shards/model.json"


class AnsweringModel(BaseModel):
    """What computes a task's rows.

    Attributes:
        revision: The state that answers: the hub's commit, or `sha256:…` over files.
        earlier: States that computed some of the rows before, and were replaced on purpose.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    revision: str
    earlier: tuple[str, ...] = ()


def keep_to_model(folder: Folder, revision: str, *, accept_changed: bool) -> None:
    """Notes which state of a model computes a task's rows from now on.

    Args:
        folder: The task's folder.
        revision: The state that is loaded; empty where the task executor cannot tell.
        accept_changed: Whether rows of several states may stand in one result.

    Raises:
        InputError: If rows of another state are there, and that is not accepted.
    """
    if not revision:
        return
    known = _read(folder)
    if known is not None and known.revision == revision:
        return
    earlier: tuple[str, ...] = ()
    if known is not None and list_parts(folder):
        if not accept_changed:
            raise InputError(
                f"the model has changed since task {folder.name} was begun: its rows so far are of "
                f"{known.revision}, and what is there now is {revision}. Start over "
                f"with --fresh (mloc run --resume {folder.name} --fresh; over the API, submit the "
                "template again), or keep the rows of both models in one result with "
                "--accept-changed-model"
            )
        earlier = tuple(dict.fromkeys((*known.earlier, known.revision)))
    write_answering_model(folder, AnsweringModel(revision=revision, earlier=earlier))


def write_answering_model(folder: Folder, model: AnsweringModel) -> None:
    """Writes the note."""
    folder.write_bytes(ANSWERING_NAME, model.model_dump_json().encode() + b"\n")


def _read(folder: Folder) -> AnsweringModel | None:
    """Returns the note; None without one."""
    try:
        return AnsweringModel.model_validate_json(folder.read_bytes(ANSWERING_NAME))
    except FileNotFoundError:
        return None
    except ValidationError:
        raise InputError(
            f"{folder.url}/{ANSWERING_NAME} is damaged: it does not tell any more which model "
            f"computed the rows so far. Start over (mloc run --resume {folder.name} --fresh), or "
            "delete that file and resume the task"
        ) from None
