"""How tickets lie in Redis: the names of keys, and the scripts that change several at once."""

from __future__ import annotations

import math
from functools import cache
from importlib import resources

import redis
from redis.commands.core import Script


def ticket_key(ticket_id: str) -> str:
    """The hash of a ticket."""
    return f"ticket:{ticket_id}"


def lease_key(ticket_id: str) -> str:
    """The lease on a running ticket; it expires when its worker falls silent."""
    return f"lease:{ticket_id}"


def queue_key(queue: str) -> str:
    """The waiting tickets of a queue, in the order they are taken."""
    return f"queue:{queue}"


def score_priority(score: float) -> int:
    """Returns the priority in a waiting ticket's score; see `lua/submit.lua`."""
    return math.ceil(-score / 1e10)


def clock_key(queue: str) -> str:
    """The virtual time of a queue; see `lua/submit.lua`."""
    return f"queue:{queue}:clock"


def fair_key(queue: str, run_id: str) -> str:
    """The tag that a run's next ticket gets in a queue."""
    return f"queue:{queue}:next:{run_id}"


def running_key(queue: str) -> str:
    """The tickets of a queue that somebody has claimed."""
    return f"queue:{queue}:running"


def wake_key(queue: str) -> str:
    """The list on which the idle workers of a queue wait; one entry wakes one of them."""
    return f"queue:{queue}:wake"


def worker_wake_key(worker_id: str) -> str:
    """The list on which one worker waits, too: for tickets that are meant for it."""
    return f"worker:{worker_id}:wake"


def members_key(run_id: str) -> str:
    """All tickets of a run."""
    return f"run:{run_id}:tickets"


def inbox_key(run_id: str) -> str:
    """What workers have said to a run, oldest first."""
    return f"run:{run_id}:inbox"


def details_key(run_id: str) -> str:
    """What workers need to know of a run, whichever of its steps they take."""
    return f"run:{run_id}:details"


INBOX_CHANNEL = "inbox"
"""Says which run has news; the news itself lies in the inbox."""

_WAKE_TTL_S = 60


@cache
def _source(name: str) -> str:
    return (resources.files("mloc_dagster.fleet") / "lua" / f"{name}.lua").read_text()


def push_wake(client: redis.Redis, key: str) -> None:
    """Wakes one of the workers that wait on a list, or else the next one that will.

    The list has one entry at most: it only says that there is something to look for. It expires,
    because whoever does not wait now looks before it does. The scripts of `lua/` do the same.
    """
    calls = client.pipeline(transaction=True)
    calls.rpush(key, "")
    calls.ltrim(key, -1, -1)
    calls.expire(key, _WAKE_TTL_S)
    calls.execute()


def script(client: redis.Redis, name: str) -> Script:
    """Returns the named script of `lua/`, bound to a client."""
    return client.register_script(_source(name))
