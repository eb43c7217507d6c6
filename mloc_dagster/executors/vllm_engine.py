"""The vLLM engine: on GPUs in processes of its own, on CPUs within this process."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from mloc_dagster.errors import TaskCancelled
from mloc_dagster.executors.engine import Completion, EngineRequest, Rendered, Replies
from mloc_dagster.executors.engine_choice import vllm_version
from mloc_dagster.executors.memory import release_memory
from mloc_dagster.executors.model_files import folder_revision
from mloc_dagster.executors.prompts import render_chat, render_plain
from mloc_dagster.executors.vllm_adapters import (
    ServedAdapters,
    load_adapters,
    prepare_adapters,
)
from mloc_dagster.executors.vllm_environment import (
    computing_on_cpu,
    engine_threads,
    prepare_environment,
)
from mloc_dagster.executors.vllm_feed import LOOK_EVERY_S, Feed
from mloc_dagster.executors.vllm_prefill import PromptSteps
from mloc_dagster.executors.vllm_sampling import completion_of, sampling_params
from mloc_dagster.executors.vllm_shutdown import TURN, in_process, shut_down
from mloc_dagster.executors.vllm_size import device_of, held_bytes, weights_bytes_of
from mloc_dagster.executors.vllm_sleep import LEVEL, can_sleep
from mloc_dagster.executors.vllm_start import EnginePlan, plan_engine, start_engine
from mloc_dagster.executors.vllm_vision import picture_prompt, processor_template, sees
from mloc_dagster.results.rows import InputRow
from mloc_dagster.schema.task import ModelSpec


def load_engine(spec: ModelSpec) -> VllmEngine:
    """Starts vLLM with the model of a task.

    Raises:
        MissingExtraError: If vLLM is not installed.
        TerminalError: If there is no such model, or vLLM refuses it or an argument.
        TransientError: If the hub cannot be reached, or the engine's process ended.
    """
    plan = plan_engine(spec)
    prepare_environment()
    plan, adapters = prepare_adapters(plan, spec.model.adapters)
    try:
        return VllmEngine(plan, adapters)
    except BaseException:
        adapters.folders.close()
        raise


class VllmEngine:
    """A model that vLLM runs; starts it.

    Threads may share it: one at a time feeds it, the others wait.

    Args:
        plan: How it is started.
        adapters: What it serves besides the model.

    Attributes:
        llm: vLLM's `LLMEngine`; None once closed.
        capacity: Requests that it computes at once at most.
    """

    def __init__(self, plan: EnginePlan, adapters: ServedAdapters) -> None:
        self._plan = plan
        self._adapters = adapters
        self.llm: Any = None
        self._start()
        try:
            self._lock = TURN if in_process(self.llm) else threading.RLock()
            self.label = f"vllm {vllm_version()}"
            self.name = plan.source.identifier
            self.revision = folder_revision(plan.place) or str(plan.arguments.get("revision", ""))
            self.capacity: int = self.llm.vllm_config.scheduler_config.max_num_seqs
            self._max_tokens: int = self.llm.model_config.max_model_len
            self._threads = engine_threads(weights_bytes_of(self.llm)) if plan.on_cpu else None
            self._size_bytes = held_bytes(self.llm)
            self._device = device_of(self.llm)
        except BaseException:
            self._stop()
            raise

    @property
    def device(self) -> str:
        """Where it runs."""
        return self._device

    @property
    def size_bytes(self) -> int:
        """Bytes of its weights and its key-value cache."""
        return self._size_bytes

    @property
    def has_chat_template(self) -> bool:
        """Whether prompts are sent as chat messages."""
        return bool(self._template or self.llm.get_tokenizer().chat_template)

    def render(self, row: InputRow, system_prompt: str | None) -> Rendered:
        """Renders a row: a chat through the model's template, else as paragraphs.

        Raises:
            ValueError: If the row cannot be read, or the template refuses it.
        """
        if self.has_chat_template:
            return Rendered(self._chat(row, system_prompt), special=False)
        return Rendered(render_plain(row.prompt, system_prompt, sees=sees(self.llm)))

    def _chat(self, row: InputRow, system_prompt: str | None) -> str:
        return render_chat(
            self.llm.get_tokenizer(),
            row.prompt,
            system_prompt,
            sees=sees(self.llm),
            template=self._template,
        )

    def tokenize(self, texts: list[str], *, special: bool = True) -> list[list[int]]:
        """Returns the token ids of rendered texts."""
        if not texts:
            return []
        return self.llm.get_tokenizer()(
            texts,
            add_special_tokens=special,
            return_attention_mask=False,
            verbose=False,
        )["input_ids"]

    def run(self, requests: Iterator[EngineRequest], replies: Replies) -> None:
        """Answers all requests, feeding the engine as others finish.

        Raises:
            TaskCancelled: If the task was asked to stop; looked at between steps.
            TransientError: If the engine breaks down again and again.
        """
        with self._alone(replies):
            if self.llm is None:  # an earlier run could not start it again
                self._start()
            for note in self._plan.notes:
                replies.log(note)
            self._steps.in_pieces()
            with self._prepared():
                Feed(self, replies).run(requests)

    def add(self, request_id: str, request: EngineRequest) -> None:
        """Hands a request to vLLM.

        Raises:
            ValueError: If it cannot be answered.
        """
        sampling = request.sampling
        if sampling is None:
            raise ValueError("this engine generates text and makes no vectors")
        room = self._max_tokens - len(request.tokens)
        if room < 1:
            raise ValueError(
                f"the prompt has {len(request.tokens)} tokens, which leaves no room for a new "
                f"one: {self.name} reads at most {self._max_tokens}"
            )
        if not sampling.greedy:
            self._steps.whole()
        params = sampling_params(sampling, request.seed, room)
        lora = self._adapters.pick(request.adapter)
        self.llm.add_request(request_id, self._prompt(request), params, lora_request=lora)

    def completion(
        self, request: EngineRequest, output: Any, *, engine_s: float, latency_s: float
    ) -> Completion:
        """Returns a finished output as a completion.

        Raises:
            ValueError: If vLLM gave it up.
        """
        return completion_of(request, output, engine_s=engine_s, latency_s=latency_s)

    def restart(self) -> None:
        """Ends the engine and starts it again."""
        self._stop()
        self._start()

    @property
    def asleep_bytes(self) -> int | None:
        """Bytes of main memory that it takes asleep; None if it was not started for that."""
        if self.llm is None or not can_sleep(self._plan.arguments):
            return None
        return weights_bytes_of(self.llm)

    def sleep(self) -> None:
        """Moves the weights to main memory and lets go of the cache; see `vllm_sleep`."""
        self.llm.sleep(level=LEVEL)

    def wake(self) -> None:
        """Moves the weights back to the GPUs, with an empty cache."""
        self.llm.wake_up()

    def close(self) -> None:
        """Ends the engine and its processes, and gives all of its memory back."""
        self._stop()
        self._adapters.folders.close()

    def _prompt(self, request: EngineRequest) -> Any:
        rendered = request.rendered
        if not rendered.images:
            from vllm.inputs.engine import tokens_input

            return tokens_input(request.tokens, prompt=rendered.text)
        return picture_prompt(self.llm, rendered)

    @contextmanager
    def _alone(self, replies: Replies) -> Iterator[None]:
        while not self._lock.acquire(timeout=LOOK_EVERY_S):
            if replies.cancelled():
                raise TaskCancelled("stopped while another shard had the engine")
        try:
            yield
        finally:
            self._lock.release()

    def _prepared(self) -> AbstractContextManager[None]:
        return computing_on_cpu(self._threads) if in_process(self.llm) else nullcontext()

    def _start(self) -> None:
        self.llm = start_engine(self._plan)
        try:
            self._steps = PromptSteps(self.llm, self._plan.given)
            self._template = processor_template(self.llm)
            load_adapters(self.llm, self._adapters)
        except BaseException:
            self._stop()
            raise

    def _stop(self) -> None:
        llm, self.llm = self.llm, None
        if llm is not None:
            shut_down(llm)
            del llm
            release_memory()
