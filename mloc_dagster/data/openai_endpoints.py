"""What OpenAI's API calls its endpoints, and the error of a request that it would refuse too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

CHAT, COMPLETIONS, EMBEDDINGS = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
ENDPOINTS = (CHAT, COMPLETIONS, EMBEDDINGS)

Body = Mapping[str, Any]
"""What a request asks for, as it was read."""


class RequestError(ValueError):
    """A request that cannot be answered, while others of its file can."""
