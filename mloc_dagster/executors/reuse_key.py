"""What makes two requests the same: a digest over everything that can change an answer.

Every ingredient goes in with its length before it, in a fixed order, so that no two lists of
ingredients run together to the same bytes.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence

from mloc_dagster.executors.engine import EngineRequest
from mloc_dagster.schema.canonical import canonical_json
from mloc_dagster.schema.inference import Inference, Pooling

KEY_BYTES = 32
_NO_PART_OF_THE_ANSWER = {"error_budget", "seed"}  # the request has the seed that counts
_MOST_BLOCKS = 1024

Ingredient = str | bytes | int | None | Sequence["Ingredient"]
"""What a digest is made of."""


def digest_of(*ingredients: Ingredient) -> bytes:
    """Returns the sha256 of a list of ingredients; other lists have other digests."""
    digest = hashlib.sha256()
    for each in ingredients:
        digest.update(_framed(each))
    return digest.digest()


class RequestKeys:
    """Digests requests; requests with equal digests have equal answers.

    Args:
        identity: Digest of what answers: model, adapters, engine. Empty within a task, where
            they are the same for all rows.
    """

    def __init__(self, identity: bytes = b"") -> None:
        self._identity = identity
        self._blocks: dict[int, tuple[Inference | Pooling, bytes]] = {}

    def of(self, request: EngineRequest) -> bytes | None:
        """Returns a request's digest; None when an equal request may have another answer."""
        sampling, block = request.sampling, request.sampling or request.pooling
        if block is None or (sampling is not None and not sampling.deterministic):
            return None
        seeded = sampling is not None and not sampling.greedy
        rendered = request.rendered
        return digest_of(
            self._identity,
            rendered.text,
            array("q", request.tokens).tobytes(),
            rendered.image_ids,
            self._block(block),
            request.seed if seeded else None,
            request.adapter,
        )

    def _block(self, block: Inference | Pooling) -> bytes:
        # Rows with equal options share one block, which is kept so that its id stays its own.
        known = self._blocks.get(id(block))
        if known is None:
            fields = block.model_dump(mode="json", exclude=_NO_PART_OF_THE_ANSWER)
            known = block, digest_of(type(block).__name__, canonical_json(fields))
            if len(self._blocks) >= _MOST_BLOCKS:
                self._blocks.clear()
            self._blocks[id(block)] = known
        return known[1]


def _framed(value: Ingredient) -> bytes:
    if value is None:
        return b"0"
    if isinstance(value, str):
        kind, data = b"s", value.encode("utf-8", "surrogatepass")
    elif isinstance(value, bytes):
        kind, data = b"b", value
    elif isinstance(value, int):
        kind, data = b"i", b"%d" % value
    else:
        kind, data = b"l", b"".join(map(_framed, value))
    return b"%b%d:%b" % (kind, len(data), data)
