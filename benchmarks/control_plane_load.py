"""Clients that submit as fast as they are answered, in a process of its own.

    python control_plane_load.py PORT CLIENTS SECONDS IDS

Each is a thread with one connection, and what it does beside waiting is little: the stack that is
measured has the same cores. Prints figures as JSON, and writes the ids that were accepted to IDS.
"""

from __future__ import annotations

import http.client
import json
import sys
import threading
import time
from pathlib import Path

_TEMPLATE = """\
apiVersion: mloc/v1
kind: EchoTask
metadata: {{name: load, owner: team-{client}}}
spec:
  taskType: echo
  data: {{type: list, items: ["{series} {client} {number}"]}}
"""
# What was compiled before is not compiled again: no text may come twice.
_SERIES = time.time_ns()
_HEADERS = {"Content-Type": "application/yaml"}


class _Client(threading.Thread):
    """One client.

    Args:
        port: Of the API.
        client: Its number.
        end: When it stops, on the monotonic clock.
    """

    def __init__(self, port: int, client: int, end: float) -> None:
        super().__init__()
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        self._client = client
        self._end = end
        self.latencies: list[float] = []
        self.answers: list[bytes] = []
        self.refused: list[str] = []

    def run(self) -> None:
        """Submits until its time is over."""
        number = 0
        while (began := time.monotonic()) < self._end:
            text = _TEMPLATE.format(series=_SERIES, client=self._client, number=number)
            number += 1
            try:
                self._connection.request("POST", "/api/v1/tasks", text.encode(), _HEADERS)
                reply = self._connection.getresponse()
                answer = reply.read()
            except (OSError, http.client.HTTPException) as error:
                self.refused.append(f"{type(error).__name__}: {error}")
                self._connection.close()
                continue
            self.latencies.append(time.monotonic() - began)
            if reply.status == http.client.ACCEPTED:
                self.answers.append(answer)
            else:
                self.refused.append(f"{reply.status}: {answer[:200].decode(errors='replace')}")


def main() -> None:
    """Runs all clients."""
    port, count, seconds, ids = sys.argv[1:]
    began = time.monotonic()
    clients = [_Client(int(port), number, began + float(seconds)) for number in range(int(count))]
    for each in clients:
        each.start()
    for each in clients:
        each.join()
    took = time.monotonic() - began
    latencies = sorted(each for client in clients for each in client.latencies)
    answers = [json.loads(each) for client in clients for each in client.answers]
    refused = [each for client in clients for each in client.refused]
    accepted = [task["task_id"] for answer in answers for task in answer["tasks"]]
    Path(ids).write_text("\n".join(accepted))
    places = {"p50_ms": 0.5, "p95_ms": 0.95, "p99_ms": 0.99, "max_ms": 1.0}
    figures = {
        "accepted": len(accepted),
        "accepted_per_s": round(len(accepted) / took, 1),
        **{
            name: round(latencies[min(len(latencies) - 1, int(len(latencies) * share))] * 1e3, 1)
            for name, share in places.items()
        },
        "refused": len(refused),
        "refusals": refused[:3],
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
