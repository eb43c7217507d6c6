"""Running batches so that one bad row, or one too many, harms no other."""

from __future__ import annotations

import gc
import time
from collections import defaultdict

from mloc_dagster.errors import MlocError, TransientError
from mloc_dagster.executors.base import ShardContext
from mloc_dagster.executors.batches import Request
from mloc_dagster.executors.generation import Answer, generate
from mloc_dagster.executors.transformers_model import LoadedModel
from mloc_dagster.results.rows import OutputRow
from mloc_dagster.schema.inference import Inference

OUT_OF_MEMORY = ("out of memory", "can't allocate memory")
DEVICE_LOST = ("CUDA error", "device-side assert")


class BatchRunner:
    """Generates batches and emits each row as soon as its last answer is there.

    A batch that does not fit in memory is halved, and so are those after it. A batch that fails
    in another way is cut in two until the row is found that it fails for.

    Args:
        loaded: The model.
        inference: How to generate.
        seed: The task's seed.
        context: Takes rows and log lines.
    """

    def __init__(
        self, loaded: LoadedModel, inference: Inference, seed: int, context: ShardContext
    ) -> None:
        self._loaded = loaded
        self._inference = inference
        self._seed = seed
        self._context = context
        self._most: int | None = None
        self._answers: dict[int, dict[int, Answer]] = defaultdict(dict)
        self._started: dict[int, float] = {}
        self._failed: set[int] = set()

    def run(self, batch: list[Request]) -> None:
        """Generates a batch, in parts if need be.

        Raises:
            TaskCancelled: If the task was asked to stop.
            TransientError: If the device is lost.
        """
        waiting = [batch]
        while waiting:
            part = waiting.pop()
            if self._most is not None and len(part) > self._most:
                waiting += _halves(part)
                continue
            error, scarce = self._try(part)
            if error is None:
                continue
            if len(part) == 1:
                self._fail(part[0], error)
                continue
            if scarce:
                self._most = len(part) // 2
                self._context.log(f"out of memory with {len(part)} rows: {self._most} from here on")
            waiting += _halves(part)

    def _try(self, part: list[Request]) -> tuple[str | None, bool]:
        """Returns what went wrong, if anything, and whether memory was what lacked."""
        now = time.monotonic()
        for each in part:
            self._started.setdefault(each.row.index, now)
        try:
            answers = generate(
                self._loaded, self._inference, self._seed, part, self._context.cancelled
            )
        except MlocError:
            raise
        except Exception as error:
            text = f"{type(error).__name__}: {error}"
            scarce = isinstance(error, MemoryError) or any(sign in text for sign in OUT_OF_MEMORY)
            if not scarce and any(sign in text for sign in DEVICE_LOST):
                raise TransientError(f"the device is lost: {text}") from error
        else:
            for each, answer in zip(part, answers, strict=True):
                self._take(each, answer)
            return None, False
        if scarce:
            self._free_memory()
        return text, scarce

    def _take(self, request: Request, answer: Answer) -> None:
        row = request.row
        answers = self._answers[row.index]
        answers[request.answer] = answer
        if row.index in self._failed or len(answers) < self._inference.n:
            return
        done = [answers[number] for number in range(self._inference.n)]
        del self._answers[row.index]
        self._context.emit(
            OutputRow(
                index=row.index,
                prompt=row.prompt,
                output=done[0].text,
                finish_reason=done[0].finish_reason,
                outputs=[each.text for each in done] if len(done) > 1 else None,
                prompt_tokens=len(request.tokens),
                completion_tokens=sum(each.tokens for each in done),
                latency_s=time.monotonic() - self._started.pop(row.index),
                engine=self._loaded.engine,
            )
        )

    def _fail(self, request: Request, error: str) -> None:
        row = request.row
        if row.index in self._failed:
            return
        self._failed.add(row.index)
        self._answers.pop(row.index, None)
        self._context.emit(
            OutputRow(
                index=row.index,
                prompt=row.prompt,
                finish_reason="error",
                error=error,
                prompt_tokens=len(request.tokens),
                latency_s=time.monotonic() - self._started.pop(row.index),
                engine=self._loaded.engine,
            )
        )

    @staticmethod
    def _free_memory() -> None:
        import torch

        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _halves(batch: list[Request]) -> list[list[Request]]:
    middle = (len(batch) + 1) // 2
    return [batch[middle:], batch[:middle]]
