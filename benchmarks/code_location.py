"""How long the code location takes to load with 100 templates, as a ratio to an empty library.

python benchmarks/code_location.py [--templates 100]
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from record import record

LOAD = (
    "from mloc_dagster.definitions import build_definitions, runnable_library;"
    "repository = build_definitions(runnable_library()).get_repository_def();"
    "print(len(repository.get_all_jobs()))"
)

TEMPLATE = """
apiVersion: mloc/v1
kind: InferenceTask
metadata: {{name: template-{number}, owner: research}}
spec:
  taskType: inference
  model: {{source: {{type: builtin, identifier: tiny-chat}}}}
  data: {{type: list, items: [one, two, three]}}
  inference: {{temperature: 0, max_tokens: 16}}
"""


def seconds(library: Path, expected: int) -> float:
    """Loads the code location in a new process."""
    environment = {**os.environ, "MLOC_TEMPLATES_DIR": str(library)}
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", LOAD], env=environment, check=True, capture_output=True, text=True
    )
    taken = time.perf_counter() - started
    if int(done.stdout) < expected:
        raise SystemExit(f"{done.stdout.strip()} jobs, expected {expected}: {done.stderr}")
    return taken


def main() -> None:
    """Measures in turns and records."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--templates", type=int, default=100)
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        empty, full = Path(name) / "empty", Path(name) / "full"
        empty.mkdir()
        full.mkdir()
        for number in range(options.templates):
            (full / f"{number}.yaml").write_text(TEMPLATE.format(number=number))
        without: list[float] = []
        with_all: list[float] = []
        seconds(full, options.templates)  # fills the page cache
        for _ in range(options.runs):
            without.append(seconds(empty, 0))
            with_all.append(seconds(full, options.templates))
    record(
        "code_location",
        {
            "templates": options.templates,
            "empty_s": without,
            "full_s": with_all,
            "ratio": statistics.median(with_all) / statistics.median(without),
        },
    )


if __name__ == "__main__":
    main()
