"""Whether everything that was accepted ended as it should, exactly once.

It reads what a user can read, and nothing else: the API, and the results folder.
"""

from __future__ import annotations

import json
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
from control_plane_stories import Story

Task = Mapping[str, Any]

_OPEN = ("WAITING", "PENDING", "DISPATCHED", "RUNNING", "FAILED")
_FINAL = {
    "plain": {"DONE"},
    "keyed": {"DONE"},
    "stages": {"DONE"},
    "errors": {"DONE"},
    "dead": {"DEAD"},
    "cancelled_retried": {"DONE"},
}


def tasks_of(api: httpx.Client, run: str) -> list[Task]:
    """Returns all tasks of a run of the chaos, from the API's list."""
    found: list[Task] = []
    cursor: str | None = None
    while True:
        query = {"label": f"run={run}", "limit": "1000"} | ({"cursor": cursor} if cursor else {})
        page = api.get("/api/v1/tasks", params=query).raise_for_status().json()
        found += page["tasks"]
        cursor = page["next_cursor"]
        if cursor is None:
            return found


def settle(api: httpx.Client, run: str, patience_s: float) -> list[Task]:
    """Waits until every task has ended for good; returns how they are.

    Args:
        api: The API.
        run: Whose tasks.
        patience_s: Seconds in which nothing ends, after which it returns all the same.
    """
    fewest, deadline = float("inf"), time.monotonic() + patience_s
    while True:
        try:
            found = tasks_of(api, run)
            left = sum(each["status"] in _OPEN for each in found)
        except httpx.HTTPError:
            found, left = [], -1
        if 0 <= left < fewest:
            fewest, deadline = left, time.monotonic() + patience_s
        if not left or time.monotonic() > deadline:
            return found
        time.sleep(0.5)


def check(stories: Sequence[Story], tasks: Sequence[Task], results: Path) -> list[str]:
    """Returns what is wrong, one line each.

    Args:
        stories: What the users did, and what they were told.
        tasks: What the API lists.
        results: The results folder.
    """
    by_story: defaultdict[int, list[Task]] = defaultdict(list)
    for each in tasks:
        by_story[int(each["labels"]["story"])].append(each)
    found = [f"{each} is listed twice" for each in _twice(task["task_id"] for task in tasks)]
    for story in stories:
        its = by_story.pop(story.number, [])
        problems = [*story.trouble, *_existence(story, its)]
        for task in its:
            problems += [f"{task['task_id']}: {each}" for each in _of_task(story, task, results)]
        found += [f"{story.kind} {story.number}: {each}" for each in problems]
    found += [f"story {number} is nobody's" for number in by_story]
    return [*found, *_of_folder({task["task_id"] for task in tasks}, results)]


def _twice(names: Iterator[str]) -> list[str]:
    return [name for name, times in Counter(names).items() if times > 1]


def _existence(story: Story, its: Sequence[Task]) -> Iterator[str]:
    ids = {each["task_id"] for each in its}
    if story.answer == "accepted":
        if len(story.task_ids) != 1:
            yield f"answered with different tasks: {sorted(story.task_ids)}"
        elif ids != set(*story.task_ids):
            yield f"accepted as {sorted(*story.task_ids)}, listed as {sorted(ids)}"
    elif story.answer == "refused":
        if story.kind != "invalid":
            yield "was refused"
        if ids:
            yield f"was refused, and there is {sorted(ids)}"
    elif len(ids) not in (0, story.expected_tasks):
        yield f"unanswered, and there is only {sorted(ids)}"
    if story.kind == "invalid" and story.answer != "refused":
        yield f"was {story.answer}"


def _of_task(story: Story, task: Task, results: Path) -> Iterator[str]:
    state = task["status"]
    if state not in _states(story):
        detail = f" ({task['error'] or task['waiting_for']})"
        yield f"is {state}{detail}, expected {' or '.join(sorted(_states(story)))}"
        return
    yield from _runs(story, task)
    if state == "DONE":
        yield from _result(story, task, results / task["task_id"])
    elif (results / task["task_id"] / "manifest.json").exists() and state == "CANCELLED":
        yield "is cancelled and has a manifest"


def _states(story: Story) -> set[str]:
    if story.answer == "unknown":
        # Nobody knew its id, so that nobody cancelled or retried it.
        return {"DEAD"} if story.kind == "dead" else {"DONE"}
    if story.kind == "cancelled":
        # Asked to stop while it is at work, it may end before it hears of it.
        return {story.cancelled} if story.cancelled in ("CANCELLED", "DONE") else {
            "CANCELLED",
            "DONE",
        }  # fmt: skip
    return _FINAL[story.kind]


def _runs(story: Story, task: Task) -> Iterator[str]:
    asked = 1 + story.retries
    most = asked + story.unsure
    # What was cancelled before it began has had no run.
    least = asked - 1 if story.kind.startswith("cancelled") else asked
    if not least <= task["runs"] <= most:
        yield f"had {task['runs']} runs, expected {least} to {most}"


def _result(story: Story, task: Task, folder: Path) -> Iterator[str]:
    try:
        items = json.loads((folder / "responses.json").read_text())["result"]["items"]
        manifest = json.loads((folder / "manifest.json").read_text())
    except (OSError, ValueError, KeyError) as error:
        yield f"is done and its result cannot be read: {type(error).__name__}: {error}"
        return
    wanted = list(story.items[:1] if task["node"] == "second" else story.items)
    poisoned = {1} if story.kind == "errors" else set()
    given = [None if index in poisoned else each for index, each in enumerate(wanted)]
    answers = [None if each.get("error") else each["output"] for each in items]
    if [each["index"] for each in items] != list(range(len(wanted))) or answers != given:
        yield f"has {answers}, expected {given}"
    if task["errors"] != len(poisoned):
        yield f"counts {task['errors']} errors, expected {len(poisoned)}"
    missing = [
        each["path"]
        for each in manifest["entries"]
        if each["status"] != "missing" and not (folder / each["path"]).exists()
    ]
    if missing:
        yield f"its manifest lists what is not there: {missing}"


def _of_folder(known: set[str], results: Path) -> Iterator[str]:
    for each in results.iterdir():
        if not each.name.startswith((".", "batch-")) and each.name not in known:
            yield f"the results hold {each.name}, which is no task"
    done: Counter[str] = Counter()
    for path in (results / ".batches").glob("*/outcome.json"):
        tasks = json.loads(path.read_text())["tasks"]
        done.update(each["task_id"] for each in tasks if each["state"] == "DONE")
    yield from (f"{each} is done in two batches" for each, times in done.items() if times > 1)
