"""From a document's text to chunks of it, the same in every process."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from mloc_dagster.errors import MissingExtraError
from mloc_dagster.executors.model_source import clear_load_errors, model_place
from mloc_dagster.executors.retrieval.parsing import HeadingFinder, HeadingPath, ParsedDocument
from mloc_dagster.results import Passage
from mloc_dagster.schema import Chunking, ModelSource

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_ID_DIGITS = 32
"""128 bits: no two of as many chunks as any index has are equal by chance."""

_ENCODE = msgspec.json.Encoder(order="sorted").encode


class Chunker:
    """Cuts documents.

    Attributes:
        revision: Which tokens are counted: `sha256:…` over the tokenizer; empty for characters.

    Args:
        chunking: How.

    Raises:
        MissingExtraError: If the tokenizer needs a library that is not installed.
        TerminalError: If the tokenizer's model does not exist or has none.
        TransientError: If the hub cannot be reached.
    """

    def __init__(self, chunking: Chunking) -> None:
        self._chunking = chunking
        self._tokenizer: str | None = None
        self.revision = ""
        if chunking.by == "tokens" and chunking.tokenizer is not None:
            self._tokenizer = load_tokenizer(chunking.tokenizer).to_str()
            self.revision = f"sha256:{hashlib.sha256(self._tokenizer.encode()).hexdigest()}"

    def cut(
        self, document: str, parsed: ParsedDocument, payload: Mapping[str, Any] | None = None
    ) -> list[Passage]:
        """Returns the chunks of a document, in order; none of one without text.

        Args:
            document: Its id.
            parsed: Its text.
            payload: What chunks bring along.
        """
        by_marks = self._by_marks(parsed)
        splitter = self._markdown if by_marks else self._text
        path = HeadingPath(self._headings.find(parsed.text) if parsed.markdown else ())
        base = hashlib.sha256(_ENCODE([document, self._method(by_marks=by_marks), payload]))
        chunks: list[Passage] = []
        for start, text in splitter.chunk_indices(parsed.text):
            end, page, heading = start + len(text), parsed.page_at(start), path.at(start)
            digest = base.copy()
            digest.update(_ENCODE([start, end, page, heading, text]))
            chunks.append(
                Passage(
                    id=digest.hexdigest()[:_ID_DIGITS],
                    text=text,
                    document=document,
                    start=start,
                    end=end,
                    page=page,
                    heading=heading,
                    payload=None if payload is None else dict(payload),
                )
            )
        return chunks

    def _by_marks(self, parsed: ParsedDocument) -> bool:
        respect = self._chunking.respect
        return parsed.markdown if respect == "auto" else respect == "markdown"

    def _method(self, *, by_marks: bool) -> list[Any]:
        """Returns what decides where chunks begin and end, beside the text."""
        chunking = self._chunking
        return [by_marks, chunking.by, chunking.size, chunking.overlap, self.revision]

    @cached_property
    def _headings(self) -> HeadingFinder:
        return HeadingFinder()

    @cached_property
    def _markdown(self) -> Any:
        from semantic_text_splitter import MarkdownSplitter

        return self._splitter(MarkdownSplitter)

    @cached_property
    def _text(self) -> Any:
        from semantic_text_splitter import TextSplitter

        return self._splitter(TextSplitter)

    def _splitter(self, kind: Any) -> Any:
        size, overlap = self._chunking.size, self._chunking.overlap
        if self._tokenizer is None:
            return kind(size, overlap)
        return kind.from_huggingface_tokenizer_str(self._tokenizer, size, overlap)


def load_tokenizer(source: ModelSource) -> Tokenizer:
    """Loads a model's tokenizer, and none of its weights.

    Args:
        source: The model.

    Raises:
        MissingExtraError: If the libraries for it are not installed.
        TerminalError: If the model does not exist or has no tokenizer.
        TransientError: If the hub cannot be reached.
    """
    from tokenizers import Tokenizer

    with clear_load_errors(source):
        path = _tokenizer_file(source)
        tokenizer = _converted(source) if path is None else Tokenizer.from_file(str(path))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


_FILE = "tokenizer.json"


def _tokenizer_file(source: ModelSource) -> Path | None:
    """Returns where the tokenizer's one file is; None if the model has none."""
    place = model_place(source)
    if source.type != "huggingface" or Path(place).is_dir():
        found = Path(place, _FILE)
        return found if found.is_file() else None
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import LocalEntryNotFoundError, RemoteEntryNotFoundError

    try:
        return Path(hf_hub_download(place, _FILE, revision=source.revision))
    except RemoteEntryNotFoundError:
        return None
    except LocalEntryNotFoundError as error:
        raise OSError(str(error)) from error


def _converted(source: ModelSource) -> Tokenizer:
    """Returns the tokenizer of a model that has only a vocabulary."""
    if find_spec("transformers") is None:
        raise MissingExtraError(f"the tokenizer of {source.identifier!r}", "hf")
    from transformers import AutoTokenizer

    loaded: Any = AutoTokenizer.from_pretrained(model_place(source), revision=source.revision)
    backend = getattr(loaded, "backend_tokenizer", None)
    if backend is None:
        raise ValueError("its tokenizer has no fast form")
    return backend
