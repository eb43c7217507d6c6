"""What makes two requests the same: a digest over everything that can change an answer."""

from __future__ import annotations

from array import array

from mloc_dagster.executors.engines.protocol import EngineRequest
from mloc_dagster.schema.canonical import canonical_json, digest_of
from mloc_dagster.schema.inference import Inference, Pooling

KEY_BYTES = 32
_NO_PART_OF_THE_ANSWER = {"error_budget", "seed"}  # the request has the seed that counts
_MOST_BLOCKS = 1024


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
