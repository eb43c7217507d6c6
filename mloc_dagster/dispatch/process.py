"""The dispatcher as a process: it waits for its turn to lead, and for news."""

from __future__ import annotations

import logging
import signal
import threading
from contextlib import closing

import dagster as dg

from mloc_dagster.dispatch.dispatcher import AWAY, Dispatcher
from mloc_dagster.dispatch.reloading import LocationReloads
from mloc_dagster.events.redis import publishing_to_redis
from mloc_dagster.fleet import open_engine
from mloc_dagster.ledger.ledger import Ledger
from mloc_dagster.services.advisory_locks import AdvisoryLock
from mloc_dagster.services.instance import open_fleet_instance
from mloc_dagster.services.stack.layout import stack_layout
from mloc_dagster.services.stack.plan import saved_plan

_log = logging.getLogger(__name__)

_BUSY_S = 0.1
_IDLE_S = 1.0
_PAUSE_S = 0.02
"""Between two turns: under load there is news all the time."""


def dispatch_until(stop: threading.Event) -> None:
    """Dispatches until it is told to stop; waits while another process does."""
    instance = open_fleet_instance()
    plan = saved_plan(stack_layout())
    reloads = None if plan is None else LocationReloads(instance, plan.webserver_url)
    try:
        while not stop.is_set():
            try:
                _lead(instance, stop)
            except AWAY as error:
                _log.warning("%s; trying again", error)
                stop.wait(_IDLE_S)
    finally:
        if reloads is not None:
            reloads.close()
        instance.dispose()


def _lead(instance: dg.DagsterInstance, stop: threading.Event) -> None:
    ledger = Ledger.open()
    try:
        with ledger.listen() as news:
            while not news.lead(AdvisoryLock.LEAD):
                if stop.wait(_IDLE_S):
                    return
            with closing(Dispatcher(ledger, instance, open_engine())) as dispatcher:
                while not stop.is_set():
                    dispatcher.turn()
                    if news.wait(_IDLE_S if dispatcher.idle else _BUSY_S):
                        stop.wait(_PAUSE_S)
    finally:
        ledger.close()


def run() -> None:
    """Dispatches until SIGTERM or Ctrl-C."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    with publishing_to_redis():
        dispatch_until(stop)
