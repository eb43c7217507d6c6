"""Where an engine's feed draws its requests: a stream that remembers whether it has ended."""

from __future__ import annotations

from collections.abc import Iterable

from mloc_dagster.executors.engine import EngineRequest


class RequestSource:
    """Requests that are still to be drawn.

    Args:
        requests: Drawn one by one, as the engine has room.

    Attributes:
        drained: Whether there are no more.
        drawn: How many were drawn and not put back.
    """

    def __init__(self, requests: Iterable[EngineRequest]) -> None:
        self._requests = iter(requests)
        self._returned: EngineRequest | None = None
        self.drained = False
        self.drawn = 0

    def draw(self) -> EngineRequest | None:
        """Returns the next request; None when there are no more."""
        request, self._returned = self._returned, None
        if request is None and not self.drained:
            request = next(self._requests, None)
        self.drained = request is None
        self.drawn += not self.drained
        return request

    def put_back(self, request: EngineRequest) -> None:
        """Takes back the request that was drawn last: it is the next one again."""
        self._returned = request
        self.drawn -= 1


def halves(requests: list[EngineRequest]) -> list[RequestSource]:
    """Returns the requests in two sources of about equal length; empty ones are left out."""
    middle = (len(requests) + 1) // 2
    return [RequestSource(half) for half in (requests[:middle], requests[middle:]) if half]
