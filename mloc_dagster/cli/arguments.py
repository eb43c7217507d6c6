"""Arguments that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]
Wait = Annotated[bool, typer.Option("--wait", help="Return when the run has ended.")]
NoData = Annotated[
    bool, typer.Option("--no-data", help="Do not look at the data files before anything runs.")
]
