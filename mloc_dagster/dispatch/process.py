"""The dispatcher as a process: leader election, notifications, and reloading Dagster's location."""

from __future__ import annotations

import logging
import signal
import threading
from contextlib import closing

import dagster as dg
import httpx
from sqlalchemy.exc import SQLAlchemyError

from mloc_dagster.dispatch.dispatcher import AWAY, Dispatcher
from mloc_dagster.dispatch.submitted_location import latest_hashes
from mloc_dagster.events import publishing_to_redis
from mloc_dagster.fleet import open_engine
from mloc_dagster.home import stack_layout
from mloc_dagster.ledger import Ledger
from mloc_dagster.recent_templates import recent_names
from mloc_dagster.services import (
    LIBRARY_LOCATION,
    SUBMITTED_LOCATION,
    AdvisoryLock,
    open_fleet_instance,
    saved_plan,
)

_log = logging.getLogger(__name__)

_EVERY_S = 30.0
_PATIENCE_S = 120.0

_RELOAD = """
mutation Reload($name: String!) {
  reloadRepositoryLocation(repositoryLocationName: $name) {
    __typename
    ... on PythonError { message }
  }
}
"""


class LocationReloads:
    """A thread that lets Dagster's UI load templates anew: submitted ones, and those run here.

    Nothing depends on it but what people see: it never keeps tasks waiting.

    Args:
        instance: Where the runs of submitted templates are.
        webserver_url: Dagster's UI.
        every_s: Seconds between two reloads at least.
    """

    def __init__(
        self, instance: dg.DagsterInstance, webserver_url: str, every_s: float = _EVERY_S
    ) -> None:
        self._instance = instance
        self._url = webserver_url
        self._every_s = every_s
        self._loaded: tuple[str, ...] | None = None
        self._run_here = recent_names()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="mloc-reloads", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ends the thread, which may be in the middle of a request."""
        self._closing.set()

    def _run(self) -> None:
        while not self._closing.wait(self._every_s):
            try:
                self.look()
            except (httpx.HTTPError, SQLAlchemyError) as error:
                _log.info("Dagster's UI does not show the latest templates yet: %s", error)

    def look(self) -> bool:
        """Reloads what is not up to date; returns whether the submitted templates were not.

        Raises:
            httpx.HTTPError: If the UI cannot be reached.
        """
        if (names := recent_names()) != self._run_here:
            reload_location(self._url, LIBRARY_LOCATION)
            self._run_here = names
        hashes = latest_hashes(self._instance)
        if hashes == self._loaded or (not hashes and self._loaded is None):
            return False
        reload_location(self._url)
        self._loaded = hashes
        return True


def reload_location(webserver_url: str, location: str = SUBMITTED_LOCATION) -> None:
    """Asks Dagster's UI to load templates anew, and waits until it has.

    Args:
        webserver_url: Dagster's UI.
        location: Which of them: by default those that were submitted.

    Raises:
        httpx.HTTPError: If it cannot be reached.
    """
    asked = {"query": _RELOAD, "variables": {"name": location}}
    # The environment's proxies are for other machines.
    with httpx.Client(trust_env=False, timeout=_PATIENCE_S) as client:
        reply = client.post(f"{webserver_url}/graphql", json=asked).raise_for_status().json()
    told = (reply.get("data") or {}).get("reloadRepositoryLocation") or {}
    if told.get("__typename") != "WorkspaceLocationEntry":
        _log.warning("Dagster's UI cannot load its templates: %s", told or reply)


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
