"""Keeping the location of the submitted templates up to date in Dagster's UI."""

from __future__ import annotations

import logging
import threading

import dagster as dg
import httpx
from sqlalchemy.exc import SQLAlchemyError

from mloc_dagster.dispatch.submitted_location import latest_hashes
from mloc_dagster.services.stack.dagster_home import SUBMITTED_LOCATION

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
    """A thread that lets Dagster's UI load the submitted templates anew when there are new ones.

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
        """Reloads the location if it is not up to date; returns whether it did.

        Raises:
            httpx.HTTPError: If the UI cannot be reached.
        """
        hashes = latest_hashes(self._instance)
        if hashes == self._loaded or (not hashes and self._loaded is None):
            return False
        reload_location(self._url)
        self._loaded = hashes
        return True


def reload_location(webserver_url: str) -> None:
    """Asks Dagster's UI to load the submitted templates anew, and waits until it has.

    Raises:
        httpx.HTTPError: If it cannot be reached.
    """
    asked = {"query": _RELOAD, "variables": {"name": SUBMITTED_LOCATION}}
    # The environment's proxies are for other machines.
    with httpx.Client(trust_env=False, timeout=_PATIENCE_S) as client:
        reply = client.post(f"{webserver_url}/graphql", json=asked).raise_for_status().json()
    told = (reply.get("data") or {}).get("reloadRepositoryLocation") or {}
    if told.get("__typename") != "WorkspaceLocationEntry":
        _log.warning("Dagster's UI cannot load the submitted templates: %s", told or reply)
