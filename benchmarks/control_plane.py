"""What the API and its dispatcher do: real processes, the whole stack on the same cores.

    .venv/bin/python benchmarks/control_plane.py PART

Parts: accept, busy, busy_waiting, drain, stock, stream, restart, or all. Each appends an entry to
benchmarks/results/control_plane.json; with `--quick` it runs with tiny sizes and only prints: that
says whether everything works, and nothing about speed.
"""

from __future__ import annotations

import control_plane_accept
import control_plane_restart
import control_plane_stock
import control_plane_stream
from control_plane_options import parse
from parts import run_parts

PARTS = {
    "accept": control_plane_accept.measure_accept,
    "busy": control_plane_accept.measure_busy,
    "busy_waiting": control_plane_accept.measure_waiting,
    "drain": control_plane_accept.measure_drain,
    "stock": control_plane_stock.measure_stock,
    "stream": control_plane_stream.measure_stream,
    "restart": control_plane_restart.measure_restart,
}

if __name__ == "__main__":
    run_parts("control_plane", "Measures the control plane, in real processes.", PARTS, parse)
