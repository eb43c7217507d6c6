"""Running batches so that one bad row, or one too many, harms no other."""

from __future__ import annotations

import time
from collections import defaultdict

from mloc_dagster.errors import MlocError, TransientError
from mloc_dagster.executors.batches import Slot
from mloc_dagster.executors.engine import Answer, Completion, EngineRequest, Replies
from mloc_dagster.executors.generation import generate
from mloc_dagster.executors.memory import release_memory
from mloc_dagster.executors.transformers_model import LoadedModel
from mloc_dagster.results.rows import ServerFault
from mloc_dagster.schema.inference import Inference

OUT_OF_MEMORY = ("out of memory", "can't allocate memory")
DEVICE_LOST = ("CUDA error", "device-side assert")


class BatchRunner:
    """Generates batches and replies to each request as soon as its last answer is there.

    A batch that does not fit in memory is halved, and so are those after it. A batch that fails
    in another way is cut in two until the request is found that it fails for.

    Args:
        loaded: The model.
        replies: Takes answers, failures and log lines.
    """

    def __init__(self, loaded: LoadedModel, replies: Replies) -> None:
        self._loaded = loaded
        self._replies = replies
        self._most: int | None = None
        self._open: dict[int, _OpenRequest] = defaultdict(_OpenRequest)

    def run(self, batch: list[Slot]) -> None:
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
                self._fail(part[0].request, error)
                continue
            if scarce:
                self._most = len(part) // 2
                self._replies.log(f"out of memory with {len(part)} rows: {self._most} from here on")
            waiting += _halves(part)

    def _try(self, part: list[Slot]) -> tuple[str | None, bool]:
        """Returns what went wrong, if anything, and whether memory was what lacked."""
        started = time.monotonic()
        for each in part:
            request = self._open[each.request.row.index]
            request.started_s = request.started_s or started
        self._replies.started([each.request for each in part])
        try:
            answers = generate(self._loaded, _sampling(part), part, self._replies.cancelled)
        except MlocError:
            raise
        except Exception as error:
            text = f"{type(error).__name__}: {error}"
            scarce = isinstance(error, MemoryError) or any(sign in text for sign in OUT_OF_MEMORY)
            if not scarce and any(sign in text for sign in DEVICE_LOST):
                raise TransientError(f"the device is lost: {text}") from error
        else:
            share_s = (time.monotonic() - started) / len(part)
            padding = _padding(part, answers)
            for each, answer, wasted in zip(part, answers, padding, strict=True):
                self._take(each, answer, share_s, wasted)
            return None, False
        if scarce:
            release_memory()
        return text, scarce

    def _take(self, slot: Slot, answer: Answer, share_s: float, padding: int) -> None:
        request = slot.request
        state = self._open[request.row.index]
        state.answers[slot.answer] = answer
        state.engine_s += share_s
        state.padding += padding
        sampling = _sampling([slot])
        if state.failed or len(state.answers) < sampling.draws:
            return
        answers = tuple(state.answers[number] for number in sorted(state.answers))
        del self._open[request.row.index]
        self._replies.done(
            request,
            Completion(
                answers=answers * (sampling.n // sampling.draws),
                prompt_tokens=len(request.tokens),
                padding_tokens=state.padding,
                engine_s=state.engine_s,
                latency_s=time.monotonic() - state.started_s,
            ),
        )

    def _fail(self, request: EngineRequest, error: str) -> None:
        state = self._open[request.row.index]
        if not state.failed:
            state.failed = True
            self._replies.failed(request, ServerFault(error))


class _OpenRequest:
    """A request some of whose answers are still to come."""

    def __init__(self) -> None:
        self.answers: dict[int, Answer] = {}
        self.started_s = 0.0
        self.engine_s = 0.0
        self.padding = 0
        self.failed = False


def _sampling(part: list[Slot]) -> Inference:
    sampling = part[0].request.sampling
    if sampling is None:
        raise TypeError("a slot without sampling")
    return sampling


def _padding(part: list[Slot], answers: list[Answer]) -> list[int]:
    """Returns, for each slot, the tokens computed beyond its own: left of it and behind its end."""
    width = max(len(each.tokens) for each in part)
    length = max(answer.tokens for answer in answers)
    return [
        width - len(slot.tokens) + length - answer.tokens
        for slot, answer in zip(part, answers, strict=True)
    ]


def _halves(batch: list[Slot]) -> list[list[Slot]]:
    middle = (len(batch) + 1) // 2
    return [batch[middle:], batch[:middle]]
