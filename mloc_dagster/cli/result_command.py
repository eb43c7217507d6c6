"""`mloc result` and `mloc cleanup`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal, get_args

import typer
from pydantic import JsonValue

from mloc_dagster.cli.api_choice import api_client, open_api
from mloc_dagster.cli.terminal import OK
from mloc_dagster.client import Client, NotFoundError
from mloc_dagster.display import count, print_table, shorten
from mloc_dagster.errors import InputError, UnknownNameError
from mloc_dagster.results import answer_text
from mloc_dagster.wire import CleanupItem, CleanupReport, CleanupRequest

Format = Literal["json", "jsonl", "parquet", "csv"]
_SHOWN_ROWS = 20
_CELL_WIDTH = 70


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultOptions:
    """The command line of `mloc result`; see its help."""

    task_id: str
    output: Path | None = None
    format: str | None = None
    file: str | None = None
    bundle: bool = False
    list_files: bool = False
    as_json: bool = False


def result(options: ResultOptions) -> int:
    """Prints or saves what a task left; returns the exit code.

    Raises:
        InputError: If there is no such task, or its result is not there yet.
    """
    _check(options)
    with open_api(options.task_id) as client:
        if options.list_files:
            _print_files(client, options)
        elif options.output is not None or options.bundle or options.file is not None:
            typer.echo(_save(client, options))
        elif options.as_json:
            typer.echo(client.result(options.task_id).model_dump_json())
        else:
            _print(client, options.task_id)
    return OK


def _check(options: ResultOptions) -> None:
    wanted = {
        "--format": options.format is not None,
        "--file": options.file is not None,
        "--bundle": options.bundle,
        "--files": options.list_files,
    }
    given = [option for option, is_given in wanted.items() if is_given]
    if len(given) > 1:
        raise InputError(f"give one of {', '.join(given)}")
    if options.format is not None and options.format not in get_args(Format):
        raise UnknownNameError("format", options.format, get_args(Format))
    if options.format is not None and options.output is None:
        raise InputError("--format goes with -o FILE")


def _save(client: Client, options: ResultOptions) -> Path:
    target = options.output or Path()
    if options.file is not None:
        return client.save_file(options.task_id, options.file, target)
    if options.bundle or (options.format is None and target.suffix == ".tar"):
        return client.save_bundle(options.task_id, target)
    return client.save_result(options.task_id, target, _format(options.format, target))


def _format(named: str | None, target: Path) -> Format:
    wanted = named or target.suffix.removeprefix(".")
    return next((each for each in get_args(Format) if each == wanted), "parquet")


def _print_files(client: Client, options: ResultOptions) -> None:
    page = client.files(options.task_id)
    if options.as_json:
        entries = [each.model_dump(mode="json") for each in page.files]
        typer.echo(json.dumps(entries, ensure_ascii=False))
        return
    rows = [(each.name, f"{each.size:,}") for each in page.files]
    print_table(("file", "bytes"), rows, numbers=(1,))


def _print(client: Client, task_id: str) -> None:
    """Prints the first rows; what has no rows, such as a training, by its figures."""
    try:
        rows = list(islice(client.rows(task_id), _SHOWN_ROWS + 1))
        name = "rows.jsonl"
    except NotFoundError:  # not exported, as of a task that failed, or exported as JSON only
        result = client.result(task_id).result
        rows, name = _items(result), "responses.json"
        if rows is None:
            _print_figures(result)
            return
        if result.get("ok") is False:
            typer.echo(f"the task failed: `mloc show {task_id}` says why\n", err=True)
    _print_rows(rows[:_SHOWN_ROWS])
    if len(rows) > _SHOWN_ROWS:
        typer.echo(f"\nand more: `mloc result {task_id} -o {name}` saves all", err=True)


def _items(result: Mapping[str, JsonValue]) -> list[Mapping[str, JsonValue]] | None:
    """Returns the rows within a result; None of what has none."""
    items = result.get("items")
    if not isinstance(items, list):
        return None
    return [each for each in items if isinstance(each, dict)]


def _print_rows(rows: Sequence[Mapping[str, JsonValue]]) -> None:
    failed = any(row.get("error") for row in rows)
    columns = ("index", "output", *(("error",) if failed else ()))
    shown = [{**row, "output": _answer(row)} for row in rows]
    print_table(
        columns, [[_cell(row.get(each)) for each in columns] for row in shown], numbers=(0,)
    )


def _answer(row: Mapping[str, JsonValue]) -> JsonValue:
    """Returns what a row answered; calls of tools, which results of earlier versions lack, too."""
    output, calls = row.get("output"), row.get("tool_calls")
    if not isinstance(output, str) or not isinstance(calls, list):
        return output
    return answer_text(output, calls)


def _print_figures(figures: Mapping[str, JsonValue]) -> None:
    rows = [(key, _cell(value)) for key, value in figures.items()]
    print_table(("", "result"), rows)


def _cell(value: JsonValue) -> str:
    if value is None:
        return ""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return shorten(text, _CELL_WIDTH)


def cleanup(wanted: CleanupRequest, *, as_json: bool) -> int:
    """Removes what nobody needs, or says what that would be; returns the exit code."""
    with api_client() as client:
        items, more = _clean(client, wanted)
    if as_json:
        shown = {
            "dry_run": wanted.dry_run,
            "count": len(items),
            "bytes": sum(each.bytes for each in items),
            "items": [each.model_dump(mode="json") for each in items],
            "more": more,
        }
        typer.echo(json.dumps(shown, ensure_ascii=False))
        return OK
    if items:
        rows = [(each.kind, each.name, f"{each.bytes:,}", each.reason) for each in items]
        print_table(("what", "name", "bytes", "why"), rows, numbers=(2,))
        typer.echo("")
    size = f"{sum(each.bytes for each in items):,} bytes"
    if not items:
        typer.echo("there is nothing to remove")
    elif wanted.dry_run:
        typer.echo(
            f"{count(len(items), 'thing')}{' and more' * more} could go, {size}: --apply removes"
        )
    else:
        typer.echo(f"removed {count(len(items), 'thing')}, {size}")
    return OK


def _clean(client: Client, wanted: CleanupRequest) -> tuple[list[CleanupItem], bool]:
    """Asks as often as there is more to remove; a dry run shows what one call would."""
    items: list[CleanupItem] = []
    while True:
        report: CleanupReport = client.cleanup(wanted)
        items += report.items
        if wanted.dry_run or not report.more or not report.items:
            return items, report.more
