"""Counting tokens while planning, without loading a model: the `tokenizers` library alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from mloc_dagster.models import builtin_model_path
from mloc_dagster.schema.model import ModelSource

if TYPE_CHECKING:
    from tokenizers import Tokenizer

BYTES_PER_TOKEN = 4
"""English prose in today's vocabularies; other scripts take more tokens a byte."""

_BATCH_CHARACTERS = 1 << 19  # a token takes about 100 bytes while it is counted
_LONGEST = 1 << 18  # characters; no model reads more, and counting may be quadratic in it


class TokenCounter:
    """Counts the tokens of texts with a model's own tokenizer, where it is on this machine.

    Attributes:
        source: Who counts, or how it is estimated.
        counted: Whether it counts.

    Args:
        source: The model; None estimates.
    """

    def __init__(self, source: ModelSource | None) -> None:
        self._tokenizer: Tokenizer | None = None
        self.source = f"estimated: {BYTES_PER_TOKEN} bytes a token"
        path = None if source is None else find_tokenizer(source)
        if source is None or path is None:
            return
        try:
            self._tokenizer = _load(path)
        except Exception as error:  # noqa: BLE001 - tokenizers raises nothing narrower
            self.source += f", as {path} cannot be read ({error})"
        else:
            self.source = f"counted by the tokenizer of {source.identifier}"

    @property
    def counted(self) -> bool:
        """Whether this is no estimate."""
        return self._tokenizer is not None

    def __call__(self, texts: Sequence[str]) -> list[int]:
        """Returns the tokens of each text, without special ones; 0 for an empty text."""
        if self._tokenizer is None:
            return list(map(estimate_tokens, texts))
        counts = list(map(_estimate_if_long, texts))
        for places in _batches(texts):
            encodings = self._tokenizer.encode_batch_fast(
                [texts[place] for place in places], add_special_tokens=False
            )
            for place, encoding in zip(places, encodings, strict=True):
                counts[place] = len(encoding)
        return counts


def find_tokenizer(source: ModelSource) -> Path | None:
    """Returns a model's `tokenizer.json` on this machine; None if there is none. No network.

    There is none either where the extra `hf` is not installed: a machine that only plans.
    """
    if not (find_spec("tokenizers") and find_spec("huggingface_hub")):
        return None
    path: str | object | None
    if source.type == "builtin":
        path = str(builtin_model_path(source.identifier) / "tokenizer.json")
    elif source.type == "local":
        path = str(Path(source.identifier).expanduser() / "tokenizer.json")
    else:
        from huggingface_hub import try_to_load_from_cache

        path = try_to_load_from_cache(source.identifier, "tokenizer.json", revision=source.revision)
    # The hub's cache also knows that a file does not exist, and says so with an object.
    return Path(path) if isinstance(path, str) and Path(path).is_file() else None


def estimate_tokens(text: str) -> int:
    """Returns about how many tokens a text has, by its bytes."""
    return -(-len(text.encode()) // BYTES_PER_TOKEN)


def _estimate_if_long(text: str) -> int:
    return estimate_tokens(text) if len(text) > _LONGEST else 0


def _batches(texts: Sequence[str]) -> Iterator[list[int]]:
    places: list[int] = []
    size = 0
    for place, text in enumerate(texts):
        if not 0 < len(text) <= _LONGEST:
            continue
        places.append(place)
        size += len(text)
        if size >= _BATCH_CHARACTERS:
            yield places
            places, size = [], 0
    if places:
        yield places


@lru_cache(maxsize=4)
def _load(path: Path) -> Tokenizer:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer
