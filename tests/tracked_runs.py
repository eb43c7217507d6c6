"""What trackers hold, read from their files: W&B's of an offline run, and TensorBoard's."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class WandbRun:
    """A run that was written offline."""

    run_id: str = ""
    name: str = ""
    project: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)


_HEADER, _BLOCK, _RECORD = 7, 32_768, 7
_LAST_PARTS = (1, 4)


def _records(data: bytes) -> Iterator[bytes]:
    """Yields the records of a log in LevelDB's format, which W&B's files have."""
    assert data[:4] == b":W&B"
    place, whole = _HEADER, b""
    while place + _RECORD <= len(data):
        left = _BLOCK - place % _BLOCK
        if left < _RECORD:
            place += left
            continue
        _, length, kind = struct.unpack("<IHB", data[place : place + _RECORD])
        whole += data[place + _RECORD : place + _RECORD + length]
        place += _RECORD + length
        if kind in _LAST_PARTS:
            yield whole
            whole = b""


def read_wandb(path: Path) -> WandbRun:
    """Reads a `.wandb` file with W&B's own messages."""
    from wandb.proto.wandb_internal_pb2 import Record

    found = WandbRun()
    for data in _records(path.read_bytes()):
        record = Record.FromString(data)
        match record.WhichOneof("record_type"):
            case "run":
                run = record.run
                found.run_id, found.name, found.project = run.run_id, run.display_name, run.project
                found.config |= _items(run.config.update)
            case "config":
                found.config |= _items(record.config.update)
            case "history":
                found.history.append(_items(record.history.item))
            case "summary":
                found.summary |= _items(record.summary.update)
            case _:
                pass
    return found


def _items(items: Any) -> dict[str, Any]:
    return {each.key or "/".join(each.nested_key): json.loads(each.value_json) for each in items}


def read_scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Reads TensorBoard's curves with its own reader: steps and values, by name."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util.tensor_util import make_ndarray

    events = EventAccumulator(str(folder))
    events.Reload()
    tags = events.Tags()
    curves = {n: [(e.step, e.value) for e in events.Scalars(n)] for n in tags["scalars"]}
    for name in tags["tensors"]:
        if not name.endswith("/text_summary"):
            found = events.Tensors(name)
            curves[name] = [(e.step, float(make_ndarray(e.tensor_proto))) for e in found]
    return curves
