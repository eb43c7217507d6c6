"""Vectors on transformers: a model without its head, and one vector out of its tokens' states."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from mloc_dagster.errors import (
    InputError,
    MissingExtraError,
    MlocError,
    TaskCancelled,
    TransientError,
)
from mloc_dagster.executors.engines.pooling import PoolingPlan, fitted_tokens, pooling_plan, scaled
from mloc_dagster.executors.engines.protocol import Completion, EngineRequest, Rendered, Replies
from mloc_dagster.executors.engines.transformers.model import (
    DEVICE_LOST,
    OUT_OF_MEMORY,
    max_model_len,
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
from mloc_dagster.executors.prompts import RowBlock, instruction_of, plain_text
from mloc_dagster.results import InputRow, ServerFault
from mloc_dagster.schema import EmbeddingSpec, Pooling, TransformersOptions

WINDOW_ROWS = 2048  # as for text: long enough to sort by length, short enough for bounded memory


@dataclass(frozen=True, slots=True)
class _Text:
    request: EngineRequest
    tokens: list[int]
    pooling: Pooling


def load_engine(spec: EmbeddingSpec) -> PoolingEngine:
    """Loads a model without its head.

    Raises:
        MissingExtraError: If torch or transformers is not installed.
        InputError: If the template wants adapters, which make no vectors.
        TerminalError: If there is no such model, or it may not be loaded.
        TransientError: If the hub cannot be reached.
    """
    block = spec.model
    if block.adapters:
        raise InputError("model.adapters: a task of type 'embedding' has none")
    try:
        import torch
        import transformers
    except ImportError as error:
        raise MissingExtraError("embedding with transformers", "hf") from error
    from transformers import AutoModel, AutoTokenizer

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
    with clear_load_errors(source):
        tokenizer = AutoTokenizer.from_pretrained(place, **common)
        model: Any = AutoModel.from_pretrained(
            place, **common, **{name: value for name, value in how.items() if value is not None}
        )
        revision = common.get("revision")
        plan = pooling_plan(place, model.config, tokenizer, revision, max_model_len(block))
    if how["device_map"] is None:
        model.to("cuda" if torch.cuda.is_available() else "cpu")
    if model.config.is_encoder_decoder:
        model = model.get_encoder()
    return PoolingEngine(
        model.eval(),
        tokenizer,
        plan,
        options,
        label=f"transformers {transformers.__version__}",
        name=source.identifier,
        revision=commit or folder_revision(place),
    )


class PoolingEngine:
    """Makes vectors with a model that transformers loads.

    Args:
        model: The model, without a head.
        tokenizer: Its tokenizer.
        plan: How it makes vectors when the template does not say.
        options: How large batches may be.
        label: The library with its version.
        name: The model, as the template names it.
        revision: The hub's commit, or `sha256:…` over the weights' files.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        plan: PoolingPlan,
        options: TransformersOptions,
        *,
        label: str,
        name: str,
        revision: str,
    ) -> None:
        self.label = label
        self.name = name
        self.revision = revision
        self._model: Any = model
        self._tokenizer: Any = tokenizer
        self._plan = plan
        self._options = options
        self._turn = Turn()
        pad = tokenizer.pad_token_id
        self._pad = 0 if pad is None else pad

    @property
    def device(self) -> str:
        """Where its weights are."""
        return str(self._model.device)

    @property
    def size_bytes(self) -> int:
        """Bytes of its weights and buffers."""
        return weights_bytes(self._model)

    def render(self, row: InputRow, block: RowBlock) -> Rendered:
        """Puts the instruction before the text; a chat is its messages' texts.

        Raises:
            ValueError: If the row holds more than text.
        """
        return Rendered(f"{instruction_of(block) or ''}{plain_text(row.prompt)}")

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
        """Makes vectors, window by window, in batches of texts of about one length.

        Raises:
            TaskCancelled: If the task was asked to stop; looked at between batches.
            TransientError: If the device is lost.
        """
        self._run_windows(filter(None, requests), replies, urgent=False)

    def call(self, requests: Sequence[EngineRequest], replies: Replies) -> None:
        """Makes vectors between two batches of a shard.

        Raises:
            TaskCancelled: If nobody waits any more; looked at between batches.
            TransientError: If the device is lost.
        """
        self._run_windows(iter(requests), replies, urgent=True)

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

    def close(self) -> None:
        """Lets go of the weights and returns their memory."""
        self._model = self._tokenizer = None
        release_memory()

    def _texts(self, window: list[EngineRequest], replies: Replies) -> Iterator[_Text]:
        width = self._model.config.get_text_config().hidden_size
        for request in window:
            pooling = request.pooling
            if pooling is None:
                replies.failed(request, "this engine makes vectors and generates no text")
                continue
            if pooling.dimensions is not None and pooling.dimensions > width:
                replies.failed(
                    request, f"{pooling.dimensions} dimensions of {self.name}, which has {width}"
                )
                continue
            try:
                tokens = fitted_tokens(request, self._plan.limit, self._tokenizer, self.name)
            except ValueError as error:
                replies.failed(request, str(error))
            else:
                yield _Text(request, tokens, pooling)

    def _batches(self, texts: list[_Text]) -> Iterator[list[_Text]]:
        batch: list[_Text] = []
        for text in texts:
            size = (len(batch) + 1) * len(batch[0].tokens) if batch else 0
            if len(batch) >= self._options.max_batch_size or size > self._options.max_batch_tokens:
                yield batch
                batch = []
            batch.append(text)
        if batch:
            yield batch

    def _run(self, batch: list[_Text], replies: Replies) -> None:
        started = time.monotonic()
        try:
            vectors = self._vectors(batch)
        except MlocError:
            raise
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            scarce = isinstance(error, MemoryError) or any(sign in reason for sign in OUT_OF_MEMORY)
            if not scarce and any(sign in reason for sign in DEVICE_LOST):
                raise TransientError(f"the device is lost: {reason}") from error
        else:
            self._reply(batch, vectors, time.monotonic() - started, replies)
            return
        # Cut in two until it fits, or until the one text is found that fails.
        release_memory()
        if len(batch) == 1:
            replies.failed(batch[0].request, ServerFault(reason))
            return
        middle = (len(batch) + 1) // 2
        self._run(batch[:middle], replies)
        self._run(batch[middle:], replies)

    def _vectors(self, batch: list[_Text]) -> list[list[float]]:
        import torch

        width = max(len(text.tokens) for text in batch)
        padding = [[self._pad] * (width - len(text.tokens)) for text in batch]
        # Padding stands on the right: a decoder's tokens then keep their positions.
        ids = [text.tokens + more for text, more in zip(batch, padding, strict=True)]
        mask = [[1] * len(text.tokens) + [0] * (width - len(text.tokens)) for text in batch]
        device = self._model.device
        with torch.inference_mode():
            states = self._model(
                input_ids=torch.tensor(ids, device=device),
                attention_mask=torch.tensor(mask, device=device),
            ).last_hidden_state
            return [
                self._pool(states[place, : len(text.tokens)], text.pooling)
                for place, text in enumerate(batch)
            ]

    def _pool(self, states: Any, pooling: Pooling) -> list[float]:
        """Returns the vector of one text.

        Args:
            states: Its tokens' last states, [tokens, width].
            pooling: How to make it.
        """
        match pooling.pooling_type or self._plan.pooling_type:
            case "CLS":
                vector = states[0]
            case "LAST":
                vector = states[-1]
            case "MEAN":
                vector = states.float().mean(dim=0)
        return scaled(vector, pooling)

    def _reply(
        self, batch: list[_Text], vectors: list[list[float]], seconds: float, replies: Replies
    ) -> None:
        width = max(len(text.tokens) for text in batch)
        for text, vector in zip(batch, vectors, strict=True):
            replies.done(
                text.request,
                Completion(
                    embedding=vector,
                    prompt_tokens=len(text.tokens),
                    padding_tokens=width - len(text.tokens),
                    engine_s=seconds / len(batch),
                    latency_s=seconds,
                ),
            )
