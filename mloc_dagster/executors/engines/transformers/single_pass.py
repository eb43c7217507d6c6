"""Models that read each text once, on transformers: in batches of texts of about one length."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from mloc_dagster.errors import (
    InputError,
    MissingExtraError,
    MlocError,
    TaskCancelled,
    TransientError,
)
from mloc_dagster.executors.engines.protocol import Completion, EngineRequest, Replies
from mloc_dagster.executors.engines.transformers.model import (
    DEVICE_LOST,
    OUT_OF_MEMORY,
    options_of,
    quantised_loading,
)
from mloc_dagster.executors.engines.turn import Ticket, Turn
from mloc_dagster.executors.model_cache import release_memory, weights_bytes
from mloc_dagster.executors.model_source import (
    clear_load_errors,
    folder_revision,
    hub_commit,
    model_place,
    trusts_remote_code,
)
from mloc_dagster.results import ServerFault
from mloc_dagster.schema import ModelSpec, TransformersOptions

WINDOW_ROWS = 2048  # as for text: long enough to sort by length, short enough for bounded memory

_FULL_TOKENS = 1024
"""Tokens that keep a device busy: a batch that has them takes no text that is much shorter."""

_ABOUT_AS_LONG = 0.8
"""Of its longest text. Of shards of 30 passages of XQuAD 39% is padding without it, with it 9%."""


@dataclass(frozen=True, slots=True)
class LoadedParts:
    """A model as it was loaded, without what answers.

    Attributes:
        model: The model.
        tokenizer: Its tokenizer.
        options: How large batches may be.
        label: The library with its version.
        name: The model, as the template names it.
        place: The folder, or the hub's id, that it was loaded from.
        commit: The hub's commit; None of files.
        revision: The hub's commit, or `sha256:…` over the weights' files.
    """

    model: Any
    tokenizer: Any
    options: TransformersOptions
    label: str
    name: str
    place: str
    commit: str | None
    revision: str


def load_parts(spec: ModelSpec, auto_class: str, check: Any = None) -> LoadedParts:
    """Loads the model of a task.

    Args:
        spec: The task.
        auto_class: The class of transformers that loads it: `AutoModel`.
        check: Takes the model's configuration before its weights are read, and may raise.

    Raises:
        MissingExtraError: If torch or transformers is not installed.
        InputError: If the template wants adapters.
        TerminalError: If there is no such model, or it may not be loaded.
        TransientError: If the hub cannot be reached.
    """
    block = spec.model
    if block.adapters:
        raise InputError(f"model.adapters: a task of type {spec.task_type!r} has none")
    try:
        import torch
        import transformers
    except ImportError as error:
        raise MissingExtraError(f"{spec.task_type} with transformers", "hf") from error
    from transformers import AutoConfig, AutoTokenizer

    source, options = block.source, options_of(block)
    place = model_place(source)
    commit = hub_commit(source)
    common: dict[str, Any] = {
        "trust_remote_code": trusts_remote_code(source, asked=options.trust_remote_code),
        "local_files_only": source.type != "huggingface",
    }
    if commit:
        common["revision"] = commit
    how = {
        "dtype": options.dtype,
        "attn_implementation": options.attn_implementation,
        "low_cpu_mem_usage": options.low_cpu_mem_usage,
        "device_map": "cpu" if spec.enforce_cpu else options.device_map,
        **quantised_loading(options, enforce_cpu=spec.enforce_cpu),
    }
    transformers.utils.logging.disable_progress_bar()
    loader: Any = getattr(transformers, auto_class)
    with clear_load_errors(source):
        if check is not None:
            check(AutoConfig.from_pretrained(place, **common))
        tokenizer = AutoTokenizer.from_pretrained(place, **common)
        model: Any = loader.from_pretrained(
            place, **common, **{name: value for name, value in how.items() if value is not None}
        )
    if how["device_map"] is None:
        model.to("cuda" if torch.cuda.is_available() else "cpu")
    return LoadedParts(
        model.eval(),
        tokenizer,
        options,
        f"transformers {transformers.__version__}",
        source.identifier,
        place,
        common.get("revision"),
        commit or folder_revision(place),
    )


@dataclass(frozen=True, slots=True)
class Text:
    """What the model reads of a request.

    Attributes:
        request: The request.
        tokens: The token ids.
    """

    request: EngineRequest
    tokens: list[int]


class SinglePassEngine(ABC):
    """Answers each request by what the model makes of its tokens in one pass.

    Args:
        parts: The model.
    """

    def __init__(self, parts: LoadedParts) -> None:
        self.label = parts.label
        self.name = parts.name
        self.revision = parts.revision
        self._model: Any = parts.model
        self._tokenizer: Any = parts.tokenizer
        self._options = parts.options
        self._turn = Turn()
        pad = parts.tokenizer.pad_token_id
        self._pad = 0 if pad is None else pad

    @property
    def device(self) -> str:
        """Where its weights are."""
        return str(self._model.device)

    @property
    def size_bytes(self) -> int:
        """Bytes of its weights and buffers."""
        return weights_bytes(self._model)

    def tokenize(self, texts: list[str], *, special: bool = True) -> list[list[int]]:
        """Returns the token ids of texts, with those that the model wants around them."""
        if not texts:
            return []
        return self._tokenizer(
            texts,
            add_special_tokens=special,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )["input_ids"]

    def run(self, requests: Iterator[EngineRequest | None], replies: Replies) -> None:
        """Answers, window by window, in batches of texts of about one length.

        Raises:
            TaskCancelled: If the task was asked to stop; looked at between batches.
            TransientError: If the device is lost.
        """
        self._run_windows(filter(None, requests), replies, urgent=False)

    def call(self, requests: Sequence[EngineRequest], replies: Replies) -> None:
        """Answers between two batches of a shard.

        Raises:
            TaskCancelled: If nobody waits any more; looked at between batches.
            TransientError: If the device is lost.
        """
        self._run_windows(iter(requests), replies, urgent=True)

    def close(self) -> None:
        """Lets go of the weights and returns their memory."""
        self._model = self._tokenizer = None
        release_memory()

    @abstractmethod
    def _readable(self, request: EngineRequest) -> list[int]:
        """Returns the tokens that the model reads of a request.

        Raises:
            ValueError: If it cannot be answered.
        """

    @abstractmethod
    def _answers(self, batch: list[Text]) -> list[Completion]:
        """Returns what the model makes of each text; how long that took is added."""

    def _padded(self, batch: list[Text]) -> tuple[Any, Any]:
        """Returns the ids and the attention mask of a batch.

        Padding stands on the right: a decoder's tokens then keep their positions.
        """
        import torch

        width = max(len(text.tokens) for text in batch)
        ids = [text.tokens + [self._pad] * (width - len(text.tokens)) for text in batch]
        mask = [[1] * len(text.tokens) + [0] * (width - len(text.tokens)) for text in batch]
        device = self._model.device
        return torch.tensor(ids, device=device), torch.tensor(mask, device=device)

    def _run_windows(
        self, requests: Iterator[EngineRequest], replies: Replies, *, urgent: bool
    ) -> None:
        while window := list(islice(requests, WINDOW_ROWS)):
            texts = sorted(self._texts(window, replies), key=lambda text: -len(text.tokens))
            for batch in self._batches(texts):
                if replies.cancelled():
                    raise TaskCancelled("stopped between two batches")
                with self._turn.held(Ticket(urgent), replies.cancelled):
                    self._run(batch, replies)

    def _texts(self, window: list[EngineRequest], replies: Replies) -> Iterator[Text]:
        for request in window:
            try:
                tokens = self._readable(request)
            except ValueError as error:
                replies.failed(request, str(error))
            else:
                yield Text(request, tokens)

    def _batches(self, texts: list[Text]) -> Iterator[list[Text]]:
        batch: list[Text] = []
        for text in texts:
            if batch and not self._takes(batch, text):
                yield batch
                batch = []
            batch.append(text)
        if batch:
            yield batch

    def _takes(self, batch: list[Text], text: Text) -> bool:
        """Tells whether a batch has room for a text, which is none of its longest."""
        width, most = len(batch[0].tokens), self._options
        if len(batch) >= most.max_batch_size or (len(batch) + 1) * width > most.max_batch_tokens:
            return False
        return len(batch) * width < _FULL_TOKENS or len(text.tokens) >= _ABOUT_AS_LONG * width

    def _run(self, batch: list[Text], replies: Replies) -> None:
        started = time.monotonic()
        try:
            answers = self._answers(batch)
        except MlocError:
            raise
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            scarce = isinstance(error, MemoryError) or any(sign in reason for sign in OUT_OF_MEMORY)
            if not scarce and any(sign in reason for sign in DEVICE_LOST):
                raise TransientError(f"the device is lost: {reason}") from error
        else:
            self._reply(batch, answers, time.monotonic() - started, replies)
            return
        # Cut in two until it fits, or until the one text is found that fails.
        release_memory()
        if len(batch) == 1:
            replies.failed(batch[0].request, ServerFault(reason))
            return
        middle = (len(batch) + 1) // 2
        self._run(batch[:middle], replies)
        self._run(batch[middle:], replies)

    def _reply(
        self, batch: list[Text], answers: list[Completion], seconds: float, replies: Replies
    ) -> None:
        width = max(len(text.tokens) for text in batch)
        for text, answer in zip(batch, answers, strict=True):
            replies.done(
                text.request,
                replace(
                    answer,
                    prompt_tokens=len(text.tokens),
                    padding_tokens=width - len(text.tokens),
                    engine_s=seconds / len(batch),
                    latency_s=seconds,
                ),
            )
