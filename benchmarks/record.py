"""Keeps what a benchmark measured, next to the others that it measured."""

from __future__ import annotations

import json
import platform
from datetime import UTC, datetime
from pathlib import Path

import psutil

RESULTS = Path(__file__).parent / "results"


def record(name: str, figures: dict[str, object]) -> None:
    """Prints the figures, and appends them with date and machine to `results/<name>.json`."""
    entry = {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {
            "cores": psutil.cpu_count(),
            "memory_gib": round(psutil.virtual_memory().total / 2**30),
            "python": platform.python_version(),
            "load_1m": round(psutil.getloadavg()[0], 2),
        },
        **figures,
    }
    path = RESULTS / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    entries = json.loads(path.read_text()) if path.exists() else []
    path.write_text(json.dumps([*entries, entry], indent=2) + "\n")
    print(json.dumps(entry, indent=2))
