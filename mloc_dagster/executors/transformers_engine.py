"""The transformers engine, on CPU and on CUDA.

Requests are drawn in windows, sorted by length and generated in batches. Which rows share a batch
changes no answer on purpose; what remains is the rounding of the matrix products, which depends
on a batch's shape (see `sampling`).
"""

from __future__ import annotations

from collections.abc import Iterator

from mloc_dagster.errors import TaskCancelled
from mloc_dagster.executors.batch_run import BatchRunner
from mloc_dagster.executors.batches import Slot, make_batches
from mloc_dagster.executors.engine import EngineRequest, Rendered, Replies
from mloc_dagster.executors.guided import GrammarShelf
from mloc_dagster.executors.image_stream import windows
from mloc_dagster.executors.prompts import render_chat, render_plain
from mloc_dagster.executors.transformers_model import LoadedModel, load_model
from mloc_dagster.executors.transformers_vision import with_pixels
from mloc_dagster.results.rows import InputRow
from mloc_dagster.schema.model import TransformersOptions
from mloc_dagster.schema.task import ModelSpec

WINDOW_ROWS = 1024  # long enough to sort by length, short enough for bounded memory


def load_engine(spec: ModelSpec) -> TransformersEngine:
    """Loads the model; see `transformers_model.load_model` for what may go wrong."""
    return TransformersEngine(load_model(spec.model, spec.enforce_cpu), spec.model.transformers)


class TransformersEngine:
    """Generates text with a model that transformers loads.

    Args:
        loaded: The model.
        options: How large batches may be.
    """

    def __init__(self, loaded: LoadedModel, options: TransformersOptions) -> None:
        self.loaded = loaded
        self.label = loaded.engine
        self.name = loaded.name
        self.revision = loaded.revision
        self._options = options
        self._sees = loaded.processor is not None
        vocab_size = loaded.model.config.get_text_config().vocab_size
        self._shelf = GrammarShelf(loaded.tokenizer, vocab_size)

    @property
    def device(self) -> str:
        """Where its weights are."""
        return str(self.loaded.model.device)

    @property
    def size_bytes(self) -> int:
        """Bytes of its weights and buffers."""
        return self.loaded.size_bytes

    def render(self, row: InputRow, system_prompt: str | None) -> Rendered:
        """Renders a row: a chat through the model's template, else as paragraphs.

        Raises:
            ValueError: If the row holds more than text, or the template refuses it.
        """
        if self.loaded.has_chat_template:
            chat = render_chat(self.loaded.tokenizer, row.prompt, system_prompt, sees=self._sees)
            return Rendered(chat, special=False)
        return Rendered(render_plain(row.prompt, system_prompt, sees=self._sees))

    def tokenize(self, texts: list[str], *, special: bool = True) -> list[list[int]]:
        """Returns the token ids of rendered texts."""
        if not texts:
            return []
        return self.loaded.tokenizer(
            texts,
            add_special_tokens=special,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )["input_ids"]

    def run(self, requests: Iterator[EngineRequest], replies: Replies) -> None:
        """Generates, window by window; the requests of a batch are done when it ends.

        Raises:
            TaskCancelled: If the task was asked to stop; looked at between tokens.
            TransientError: If the device is lost.
        """
        runner = BatchRunner(self.loaded, replies)
        options = self._options
        for window in windows(requests, WINDOW_ROWS):
            if replies.cancelled():
                raise TaskCancelled("stopped between two windows of rows")
            slots = self._slots(window, replies)
            for batch in make_batches(slots, options.max_batch_size, options.max_batch_tokens):
                runner.run(batch)

    def close(self) -> None:
        """Lets go of the weights and returns their memory."""
        self.loaded.free()

    def _slots(self, window: list[EngineRequest], replies: Replies) -> Iterator[Slot]:
        for given in window:
            try:
                request, pixels = with_pixels(self.loaded.processor, given)
            except ValueError as error:
                replies.failed(given, str(error))
                continue
            sampling, most = request.sampling, self.loaded.max_positions
            if sampling is None:
                replies.failed(request, "this engine generates text and makes no vectors")
                continue
            room = sampling.max_tokens
            if most is not None:
                room = min(room, most - len(request.tokens))
            if room < 1:
                replies.failed(
                    request,
                    f"the prompt has {len(request.tokens)} tokens, which leaves no room for a new "
                    f"one: {self.name} reads at most {most}",
                )
                continue
            try:
                self.loaded.adapters.check(request.adapter)
                grammar = self._shelf.of(sampling)
            except ValueError as error:
                replies.failed(request, str(error))
                continue
            for answer in range(sampling.draws):
                yield Slot(request, answer, room, grammar, pixels)
