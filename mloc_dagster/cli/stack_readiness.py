"""Which components of a stack answer, and what to say of those that do not."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from mloc_dagster.errors import TerminalError
from mloc_dagster.services import (
    ComponentState,
    StackPlan,
    api_answers,
    code_answers,
    component_states,
    daemon_answers,
    dispatcher_answers,
    postgres_answers,
    redis_answers,
    webserver_answers,
)

_PATIENCE_S = 300.0
_LOOK_EVERY_S = 0.2
_REMIND_EVERY_S = 10.0
_HOPELESS_RESTARTS = 4
_TAIL_LINES = 12

# In supervisord's words for a command that is missing or may not be run: the next attempt will not
# help. Other problems are those of a process that did start.
_NO_COMMAND = "command"


@dataclass(slots=True)
class Readiness:
    """What of a stack has answered so far.

    Args:
        plan: The stack.
        tell: Told which component answers, when one more does, and which are still waited for.
        remind: Told which ones are still waited for when none has answered for a while.
    """

    plan: StackPlan
    tell: Callable[[str, Sequence[ComponentState]], None] = lambda _ready, _awaited: None
    remind: Callable[[Sequence[ComponentState]], None] = lambda _awaited: None
    _ready: set[str] = field(default_factory=set)
    _since: datetime = field(default_factory=lambda: datetime.now(UTC))

    def wait(self, interrupted: Callable[[], bool]) -> bool:
        """Waits until every component answers.

        Args:
            interrupted: Whether to leave off; asked all the time.

        Returns:
            False if it was interrupted.

        Raises:
            TerminalError: If a component dies again and again, or none becomes ready in five
                minutes.
        """
        deadline, known = time.monotonic() + _PATIENCE_S, 0
        remind_at = time.monotonic() + _REMIND_EVERY_S
        while not interrupted():
            states = component_states(self.plan.layout)
            waiting = self._waiting(states)
            if not waiting:
                return True
            for each in waiting:
                if each.restarts >= _HOPELESS_RESTARTS:
                    raise TerminalError(_failure(each, "dies again and again"))
                if _NO_COMMAND in each.problem:
                    raise TerminalError(_failure(each, f"can't be started: {each.problem}"))
            if len(self._ready) > known:  # on a busy machine each takes its time
                deadline, known = time.monotonic() + _PATIENCE_S, len(self._ready)
                remind_at = time.monotonic() + _REMIND_EVERY_S
            if time.monotonic() > remind_at:
                self.remind(waiting)
                remind_at = time.monotonic() + _REMIND_EVERY_S
            if time.monotonic() > deadline:
                raise TerminalError(
                    _failure(waiting[0], f"has not answered, nor another one in {_PATIENCE_S:g} s")
                )
            time.sleep(_LOOK_EVERY_S)
        return False

    def _waiting(self, states: Sequence[ComponentState]) -> list[ComponentState]:
        for each in states:
            asked = each.name not in self._ready and self._may_answer(each)
            if asked and component_answers(self.plan, each, self._since):
                self._ready.add(each.name)
                self.tell(each.name, [one for one in states if one.name not in self._ready])
        return [each for each in states if each.name not in self._ready]

    def _may_answer(self, component: ComponentState) -> bool:
        """Whether what it waits for is there; asking before only costs time."""
        embedded = {"redis", "postgres"} & set(self.plan.components())
        awaited = component.name in embedded or embedded <= self._ready
        return awaited and component.state == "RUNNING"


def component_answers(plan: StackPlan, component: ComponentState, since: datetime) -> bool:
    """Returns whether a component does its work.

    Args:
        plan: The stack.
        component: Which, as the supervisor has it.
        since: Of the daemon only heartbeats after this moment count.
    """
    match component.name:
        case "redis":
            return redis_answers(plan.redis_url)
        case "postgres":
            return postgres_answers(plan.postgres_url)
        case "code":
            return code_answers(plan.layout.socket("code.sock"))
        case "webserver":
            return webserver_answers(plan.webserver_url)
        case "daemon":
            return daemon_answers(plan.postgres_url, since)
        case "dispatcher":
            return dispatcher_answers(plan.postgres_url)
        case "api":
            return plan.api_url is not None and api_answers(plan.api_url)
    return component.pid in _registered(plan)


def _registered(plan: StackPlan) -> set[int]:
    # The fleet's own connection would wait minutes for a Redis that is away.
    if not redis_answers(plan.redis_url):
        return set()
    from mloc_dagster.fleet import open_engine

    return {each.pid for each in open_engine(plan.redis_url).workers()}


def _failure(component: ComponentState, what: str) -> str:
    lines = [f"{component.name} {what}; the end of {component.log}:"]
    return "\n".join([*lines, *(f"    {line}" for line in _tail(component.log))])


def _tail(log: Path) -> list[str]:
    if not log.exists():
        return []
    return log.read_text(encoding="utf-8", errors="replace").splitlines()[-_TAIL_LINES:]
