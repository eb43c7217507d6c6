"""Users of the control plane who submit, repeat, cancel and retry, and note what they were told."""

from __future__ import annotations

import random
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import httpx
from control_plane_stories import Story

_PATIENCE_S = 180.0
_PAUSE_S = 0.2
_USERS = 16


class Users:
    """Threads that play stories against an API that is killed now and then.

    Args:
        url: The API.
        run: Label of all submissions.
        seed: Of what is random about them.
    """

    def __init__(self, url: str, run: str, seed: int) -> None:
        self._http = httpx.Client(base_url=url, timeout=10, trust_env=False)
        self._run = run
        self._seed = seed
        self._later: deque[Story] = deque()

    def close(self) -> None:
        """Closes their connections."""
        self._http.close()

    def play(self, all_stories: Sequence[Story], seconds: float) -> None:
        """Plays all stories to their end, beginning them evenly over a time."""
        begun = threading.Event()
        follower = threading.Thread(target=self._follow, args=(begun,))
        follower.start()
        start = time.monotonic()
        with ThreadPoolExecutor(_USERS) as pool:
            for place, story in enumerate(all_stories):
                due = start + seconds * place / len(all_stories)
                time.sleep(max(0.0, due - time.monotonic()))
                pool.submit(self._begin, story)
        begun.set()
        follower.join()

    def _begin(self, story: Story) -> None:
        try:
            self._submit(story)
            if story.answer == "accepted" and story.kind.startswith("cancelled"):
                time.sleep(random.Random(self._seed + story.number).choice([0, 0, 0.3, 1.0]))
                self._cancel(story)
            if story.answer == "accepted" and story.kind in ("errors", "dead", "cancelled_retried"):
                self._later.append(story)
        except Exception as error:  # noqa: BLE001 (the checker tells of it)
            story.trouble.append(f"{type(error).__name__}: {error}")

    def _submit(self, story: Story) -> None:
        key = f"{self._run}-{story.number}"
        keyed = {"Idempotency-Key": key} if story.kind == "keyed" else {}
        text = story.text(self._run)

        def send() -> httpx.Response:
            return self._http.post("/api/v1/tasks", content=text, headers=keyed)

        if story.kind in ("keyed", "invalid"):
            for _ in range(2):
                self._note(story, self._insist(send))
            return
        # Without an answer it is accepted or not: nobody knows, and it is not sent again.
        with suppress(httpx.TransportError):
            self._note(story, send())

    def _note(self, story: Story, reply: httpx.Response) -> None:
        if reply.status_code == 202:
            story.answer = "accepted"
            story.task_ids.add(tuple(each["task_id"] for each in reply.json()["tasks"]))
        elif reply.status_code == 422:
            story.answer = "refused"
        elif reply.status_code < 500:
            story.trouble.append(f"submission answered {reply.status_code}: {reply.text[:300]}")

    def _insist(
        self, send: Callable[[], httpx.Response], lost: Callable[[], None] = lambda: None
    ) -> httpx.Response:
        """Sends a request until there is an answer to it; `lost` counts those without one."""
        deadline = time.monotonic() + _PATIENCE_S
        while True:
            try:
                reply = send()
                if reply.status_code < 500:
                    return reply
                problem = f"{reply.status_code}: {reply.text[:300]}"
            except httpx.TransportError as error:
                problem = f"{type(error).__name__}: {error}"
            lost()
            if time.monotonic() > deadline:
                raise TimeoutError(f"no answer in {_PATIENCE_S:g} s; the last: {problem}")
            time.sleep(_PAUSE_S)

    def _cancel(self, story: Story) -> None:
        (task_id,) = next(iter(story.task_ids))
        reply = self._insist(lambda: self._http.post(f"/api/v1/tasks/{task_id}/cancel"))
        if reply.status_code == 202:
            (changed,) = reply.json()["tasks"]
            story.cancelled = changed["status"]
        elif reply.status_code == 409:
            story.cancelled = "DONE"
        else:
            story.trouble.append(f"cancel answered {reply.status_code}: {reply.text[:300]}")

    # What goes on after a task has ended

    def _follow(self, begun: threading.Event) -> None:
        """Retries what has ended, until every story was begun and nothing is left."""
        ended = time.monotonic()
        while self._later or not begun.is_set():
            story = self._later.popleft() if self._later else None
            if story is not None and self._retried(story):
                ended = time.monotonic()
                continue
            time.sleep(_PAUSE_S / max(1, len(self._later)))
            waited_s = time.monotonic() - ended
            if story is not None and begun.is_set() and waited_s > _PATIENCE_S:
                story.trouble.append(f"nothing ended within {_PATIENCE_S:g} s to be retried")
            elif story is not None:
                self._later.append(story)

    def _retried(self, story: Story) -> bool:
        """Retries a task if it has ended; returns whether nothing more is to be done."""
        (task_id,) = next(iter(story.task_ids))
        try:
            shown: dict[str, Any] = self._http.get(f"/api/v1/tasks/{task_id}").json()
        except (httpx.TransportError, ValueError):
            return False
        if shown.get("status") not in ("DONE", "FAILED", "DEAD", "CANCELLED"):
            return False
        if story.kind == "cancelled_retried" and shown["status"] == "DONE":
            return True  # it was faster than who cancelled it
        scope = "failed_rows" if story.kind == "errors" else "failed_shards"

        def send() -> httpx.Response:
            return self._http.post(f"/api/v1/tasks/{task_id}/retry", json={"scope": scope})

        def lost() -> None:
            story.unsure += 1

        try:
            reply = self._insist(send, lost)
        except TimeoutError as error:
            story.trouble.append(str(error))
            return True
        if reply.status_code == 202:
            story.retries += 1
        elif reply.status_code == 409 and not story.unsure:
            return False  # its run has ended and its end is not in the ledger yet
        elif reply.status_code != 409:
            story.trouble.append(f"retry answered {reply.status_code}: {reply.text[:300]}")
        return True
