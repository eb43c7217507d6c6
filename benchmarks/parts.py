"""The command line of a benchmark in parts: each in a temporary folder, one after the other."""

from __future__ import annotations

import argparse
import json
import logging
import signal
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from record import record

Part = Callable[[Any, Path, Path], dict[str, Any]]
"""Measures with options, a temporary folder and an empty template library; returns figures."""


def run_parts(
    name: str,
    description: str,
    parts: Mapping[str, Part],
    parse: Callable[[argparse.ArgumentParser], tuple[argparse.Namespace, Any]],
) -> None:
    """Measures the parts that were asked for; records each, or prints it with `--quick`.

    Args:
        name: Of the file of results.
        description: What `--help` says.
        parts: All parts.
        parse: Adds the options and reads the command line; options are a dataclass.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("part", choices=[*parts, "all"])
    arguments, options = parse(parser)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    logging.getLogger("dagster").setLevel(logging.ERROR)
    sizes = {
        name: size.name if isinstance(size, Path) else size
        for name, size in asdict(options).items()
    }
    if "ray_path" in sizes:
        sizes["ray_path"] = ""  # a path of this machine
    for part in parts if arguments.part == "all" else [arguments.part]:
        figures = {"part": part, "options": sizes, **_measured(parts[part], part, options)}
        if arguments.quick:
            print(json.dumps(figures, indent=2))
        else:
            record(name, figures)


def _measured(part: Part, name: str, options: Any) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix=f"mloc-{name}-") as temporary:
        folder = Path(temporary)
        folder.chmod(0o755)  # the embedded PostgreSQL runs as another user when this one is root
        library = folder / "templates"
        library.mkdir()
        return part(options, folder, library)
