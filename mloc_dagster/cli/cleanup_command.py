"""`mloc cleanup`."""

from __future__ import annotations

import json

import typer

from mloc_dagster.cli.api_choice import api_client
from mloc_dagster.cli.exit_codes import OK
from mloc_dagster.cli.tables import print_table
from mloc_dagster.cli.wording import count
from mloc_dagster.client import Client
from mloc_dagster.wire import CleanupItem, CleanupReport, CleanupRequest


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
