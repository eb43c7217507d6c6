"""Interactive calls on Redis: a list for each worker, and one for each answer."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from typing import cast

import msgspec
import redis

from mloc_dagster.fleet.calls import CALLER_TTL_S, Call, Piece
from mloc_dagster.fleet.redis.records import (
    blocking_client,
    caller_key,
    calls_key,
    pieces_key,
    pop,
    raising_fleet_errors,
)

_UNREAD_TTL_S = 60
"""What nobody takes, because its worker or its caller has ended, is gone after so long."""

_MOST_PIECES = 1_000

_encode = msgspec.json.Encoder().encode
_decode_call = msgspec.json.Decoder(Call).decode
_decode_piece = msgspec.json.Decoder(Piece).decode


@raising_fleet_errors
class RedisCalls:
    """`Calls` on one Redis.

    Args:
        client: As `records.connect` opens it.
    """

    def __init__(self, client: redis.Redis) -> None:
        self.client = client
        self._popping = blocking_client(client)

    def send_call(self, worker_id: str, call: Call) -> None:
        """Hands a call to a worker."""
        key = calls_key(worker_id)
        commands = self.client.pipeline(transaction=True)
        commands.set(caller_key(call.call_id), "", px=int(CALLER_TTL_S * 1000))
        commands.rpush(key, _encode(call).decode())
        commands.expire(key, _UNREAD_TTL_S)
        commands.execute()

    def next_call(self, worker_id: str, timeout_s: float) -> Call | None:
        """Takes the oldest call for a worker that somebody still waits for."""
        deadline = time.monotonic() + timeout_s
        while (left_s := deadline - time.monotonic()) > 0:
            popped = pop(self._popping, [calls_key(worker_id)], left_s)
            if popped is None:
                continue
            _, text = popped
            if not text:
                break
            call = _decode_call(text)
            if self.client.exists(caller_key(call.call_id)):
                return call
        return None

    def end_wait_for_calls(self, worker_id: str) -> None:
        """Ends a wait of this worker; without Redis none lasts long."""
        with suppress(redis.RedisError):
            self._popping.rpush(calls_key(worker_id), "")

    def give_pieces(self, pieces: Mapping[str, Sequence[Piece]]) -> Collection[str]:
        """Sends pieces of answers; returns the calls that nobody waits for any longer."""
        commands = self.client.pipeline(transaction=False)
        for call_id, each in pieces.items():
            key = pieces_key(call_id)
            commands.exists(caller_key(call_id))
            commands.rpush(key, *(_encode(piece).decode() for piece in each))
            commands.expire(key, _UNREAD_TTL_S)
        gone = [
            call_id
            for call_id, waits in zip(pieces, commands.execute()[::3], strict=True)
            if not waits
        ]
        if gone:
            self.client.delete(*map(pieces_key, gone))
        return gone

    def take_pieces(self, call_id: str, timeout_s: float) -> Sequence[Piece]:
        """Takes what has come for a caller; waits for something."""
        self.client.set(caller_key(call_id), "", px=int(CALLER_TTL_S * 1000))
        key = pieces_key(call_id)
        popped = pop(self._popping, [key], timeout_s)
        if popped is None:
            return ()
        others = cast("list[str] | None", self.client.lpop(key, _MOST_PIECES)) or []
        return tuple(_decode_piece(each) for each in (popped[1], *others))

    def hang_up(self, call_id: str) -> None:
        """Ends a call: its worker stops at its next piece."""
        self.client.delete(caller_key(call_id), pieces_key(call_id))

    def close_calls(self) -> None:
        """Closes the connections that wait."""
        self._popping.close()
