"""`mloc trace`: one trajectory of an agent, as a person reads it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from mloc_dagster.cli.api_choice import open_api
from mloc_dagster.cli.terminal import OK
from mloc_dagster.display import count
from mloc_dagster.wire import TrajectoryCall, TrajectoryTurn, TrajectoryView

_INDENT = 2


def trace(task_id: str, index: int, *, as_json: bool) -> int:
    """Prints a row's trajectory; returns the exit code.

    Raises:
        InputError: If there is no such task, or nothing of such a row.
    """
    with open_api(task_id) as client:
        found = client.trajectory(task_id, index)
    console = Console(highlight=False, soft_wrap=False)
    if as_json:
        console.file.write(found.model_dump_json() + "\n")
        return OK
    for line in _lines(found):
        console.print(line)
    return OK


def _lines(found: TrajectoryView) -> Iterator[Text | Padding]:
    if found.prompt:
        yield Text(found.prompt, style="bold")
    for turn in found.turns:
        yield from _turn(turn)
    yield _end(found)


def _turn(turn: TrajectoryTurn) -> Iterator[Text | Padding]:
    cached = f" ({turn.cached_tokens:,} cached)" if turn.cached_tokens else ""
    figures = (
        f"{turn.prompt_tokens:,} tokens read{cached}, {turn.completion_tokens:,} written, "
        f"{turn.seconds:.2f} s"
    )
    yield Text.assemble(("\nturn ", "dim"), str(turn.turn), (f" · {figures}", "dim"))
    if turn.reasoning:
        yield Padding(Text(turn.reasoning, style="italic dim"), (0, 0, 0, _INDENT), expand=False)
    if turn.text:
        yield Padding(Text(turn.text), (0, 0, 0, _INDENT), expand=False)
    for call in turn.calls:
        yield from _call(call)


def _call(call: TrajectoryCall) -> Iterator[Padding]:
    took = "" if call.seconds is None else f"  {call.seconds:.2f} s"
    asked = Text.assemble((call.tool, "cyan"), " ", call.arguments, (took, "dim"))
    yield Padding(asked, (0, 0, 0, _INDENT), expand=False)
    if call.output is None:
        answered = Text("no answer yet", style="dim")
    else:
        answered = Text(call.output, style="red" if call.failed else "green")
    for turn in call.turns:
        for line in _turn(turn):
            yield Padding(line, (0, 0, 0, 2 * _INDENT), expand=False)
    yield Padding(answered, (0, 0, 0, 2 * _INDENT), expand=False)


def _end(found: TrajectoryView) -> Text:
    if found.output is None:
        return Text("\nunder way", style="dim")
    turns = list(_all_turns(found.turns))
    read = sum(each.prompt_tokens for each in turns)
    written = sum(each.completion_tokens for each in turns)
    calls = sum(len(each.calls) for each in turns)
    did = f"{count(len(turns), 'turn')}, {count(calls, 'call')}"
    spent = f"{did}, {read:,} tokens read, {written:,} written"
    if found.error is not None:
        return Text.assemble("\n", (f"failed: {found.error}", "red"), (f"  {spent}", "dim"))
    return Text.assemble("\n", (f"ended: {found.stop}", "bold"), (f"  {spent}", "dim"))


def _all_turns(turns: Iterable[TrajectoryTurn]) -> Iterator[TrajectoryTurn]:
    """Yields turns, and those of agents that answer calls in them."""
    for turn in turns:
        yield turn
        for call in turn.calls:
            yield from _all_turns(call.turns)
