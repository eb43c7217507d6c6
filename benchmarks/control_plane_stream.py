"""How fast large results come out of the API, against plain files out of the same server."""

from __future__ import annotations

import http.client
import json
import shutil
import statistics
import time
from pathlib import Path
from typing import Any

from control_plane_options import Options
from control_plane_stack import ControlPlane, PeakMemory

_TEMPLATE = """\
apiVersion: mloc/v1
kind: EchoTask
metadata: {name: rows}
spec:
  taskType: echo
  parallel: {max_shards: 16}
  data: {type: dataset, url: rows.jsonl, column: text}
  output: {formats: [json, parquet, jsonl]}
"""
_BOUNDARY = "rows-rows-rows"
_FILES = ("json", "jsonl", "parquet")


def measure_stream(options: Options, folder: Path, library: Path) -> dict[str, Any]:
    """Returns MB/s of each format of one result, and of plain copies of its files."""
    with ControlPlane(folder, library, workers=options.workers) as stack:
        began = time.monotonic()
        task_id = _compute(stack, options.rows)
        computed_s = time.monotonic() - began
        task = f"/api/v1/results/{task_id}"
        paths = {
            **{f"plain_{each}": f"{task}/files/plain.{each}" for each in _FILES},
            **{each: f"{task}?format={each}" for each in _FILES},
            "csv_converted": f"{task}?format=csv",
            "tar": f"{task}?bundle=tar",
        }
        where = stack.results / task_id
        for each in _FILES:
            shutil.copyfile(where / f"responses.{each}", where / f"plain.{each}")
            _read(stack.port, paths[each])  # the first time more than reading may happen
        read = {name: [] for name in paths}
        peaks: dict[str, float] = {}
        before = stack.rss_mib()
        for _ in range(options.rounds):
            for name, path in paths.items():
                with PeakMemory(stack.pid("api")) as memory:
                    read[name].append(_read(stack.port, path))
                peaks[name] = max(peaks.get(name, 0.0), memory.peak_mib)
        after = stack.rss_mib()
    rates = {
        name: statistics.median(size / seconds / 1e6 for size, seconds in all_)
        for name, all_ in read.items()
    }
    return {
        "rows": options.rows,
        "computed_s": round(computed_s, 1),
        "mb": {name: round(all_[0][0] / 1e6, 1) for name, all_ in read.items()},
        "mb_per_s": {name: round(rate, 1) for name, rate in rates.items()},
        "rows_per_s": {
            name: round(options.rows / statistics.median(seconds for _, seconds in all_))
            for name, all_ in read.items()
        },
        "ratio_to_plain_file": {
            name: round(rate / rates.get(f"plain_{name}", rates["plain_jsonl"]), 3)
            for name, rate in rates.items()
            if not name.startswith("plain_")
        },
        "api_rss_mib": {"before": before, "peak": peaks, "after": after},
    }


def _compute(stack: ControlPlane, rows: int) -> str:
    lines = (json.dumps({"text": f"row {index}: how many are left?"}) for index in range(rows))
    parts = {
        'name="template"': _TEMPLATE,
        'name="file"; filename="rows.jsonl"': "\n".join(lines) + "\n",
    }
    form = "".join(
        f"--{_BOUNDARY}\r\nContent-Disposition: form-data; {name}\r\n\r\n{content}\r\n"
        for name, content in parts.items()
    )
    headers = {"Content-Type": f"multipart/form-data; boundary={_BOUNDARY}"}
    body = f"{form}--{_BOUNDARY}--\r\n".encode()
    status, answer = stack.request("POST", "/api/v1/tasks", body, headers)
    if status != http.client.ACCEPTED:
        raise SystemExit(f"the submission was answered {status}: {answer[:500].decode()}")
    (task,) = json.loads(answer)["tasks"]
    stack.drained()
    ended = stack.get(f"/api/v1/tasks/{task['task_id']}")
    if ended["status"] != "DONE" or ended["rows_finished"] != rows:
        raise SystemExit(f"the task failed: {ended}")
    return task["task_id"]


def _read(port: int, path: str) -> tuple[int, float]:
    """Reads an answer and forgets it; returns its size and the seconds that it took."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
    buffer, size = bytearray(1 << 20), 0
    began = time.monotonic()
    connection.request("GET", path)
    reply = connection.getresponse()
    if reply.status != http.client.OK:
        raise SystemExit(f"{path} answered {reply.status}: {reply.read(300).decode()}")
    while count := reply.readinto(buffer):
        size += count
    seconds = time.monotonic() - began
    connection.close()
    return size, seconds
