"""`mloc validate`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import typer

from mloc_dagster.cli.exit_codes import BAD_INPUT, OK
from mloc_dagster.cli.wording import count
from mloc_dagster.compile.compiler import compile_files
from mloc_dagster.compile.diagnostics import errors_of, in_file_order
from mloc_dagster.data.look import look_at_data
from mloc_dagster.errors import InputError


def validate(paths: Sequence[Path], *, as_json: bool, strict: bool, look: bool = True) -> int:
    """Checks files and folders of files; prints every finding, and returns the exit code.

    Args:
        paths: The files and folders.
        as_json: Prints one JSON document.
        strict: Warnings count as errors.
        look: Looks at the data files, too.
    """
    templates, findings = compile_files(template_files(paths))
    if look:
        seen = {id(each): look_at_data([each]) for each in templates}
        findings = list(in_file_order([*findings, *chain.from_iterable(seen.values())]))
        templates = [each for each in templates if not errors_of(seen[id(each)])]
    errors = errors_of(findings)
    warnings = [each for each in findings if each.severity == "warning"]
    ok = not errors and not (strict and warnings)
    if as_json:
        document = {
            "ok": ok,
            "templates": len(templates),
            "errors": len(errors),
            "warnings": len(warnings),
            "diagnostics": [each.to_json() for each in findings],
        }
        typer.echo(json.dumps(document, ensure_ascii=False))
    else:
        for each in findings:
            colour = typer.colors.RED if each.severity == "error" else typer.colors.YELLOW
            place, separator, rest = str(each).partition(": ")
            typer.echo(typer.style(place, fg=colour) + separator + rest)
        typer.echo(
            f"{count(len(templates), 'valid template')}, {count(len(errors), 'error')}, "
            f"{count(len(warnings), 'warning')}"
        )
    return OK if ok else BAD_INPUT


def template_files(paths: Sequence[Path]) -> list[Path]:
    """Returns the files that `paths` name: a folder stands for every YAML file below it.

    Raises:
        InputError: If a folder holds none.
    """
    found: dict[Path, None] = {}
    for path in paths:
        if not path.is_dir():
            found[path] = None
            continue
        below = sorted({*path.rglob("*.yaml"), *path.rglob("*.yml")})
        if not below:
            raise InputError(f"no *.yaml or *.yml file below {path}")
        found.update(dict.fromkeys(below))
    return list(found)
