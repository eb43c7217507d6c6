"""The vLLM engine: on GPUs in processes of its own, on CPUs within this process."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path
from typing import Any

from mloc_dagster.executors.engines.protocol import Completion, EngineRequest, Rendered, Replies
from mloc_dagster.executors.engines.turn import LOOK_EVERY_S, Ticket, Turn
from mloc_dagster.executors.engines.vllm.calls import Call, Traffic
from mloc_dagster.executors.engines.vllm.engine_type import VLLM, VllmOptions
from mloc_dagster.executors.engines.vllm.feed import Feed
from mloc_dagster.executors.engines.vllm.parsers import AnswerParsers, RequestParsing
from mloc_dagster.executors.engines.vllm.process import (
    TURN,
    cause_of,
    computing_on_cpu,
    engine_threads,
    in_process,
    prepare_environment,
    shut_down,
    vllm_version,
)
from mloc_dagster.executors.engines.vllm.requests import (
    ServedAdapters,
    completion_of,
    load_adapters,
    picture_prompt,
    prepare_adapters,
    processor_template,
    sampling_params,
    sees,
    template_beside,
)
from mloc_dagster.executors.engines.vllm.start import (
    EnginePlan,
    plan_engine,
    read_model,
    start_engine,
)
from mloc_dagster.executors.model_cache import release_memory, weights_bytes
from mloc_dagster.executors.model_source import folder_revision
from mloc_dagster.executors.prompts import RowBlock, render_chat, render_plain
from mloc_dagster.results import InputRow
from mloc_dagster.schema import Inference, ModelSpec

STEP_TOKENS = 4096
"""Tokens of a step at most while prompts are read in pieces: what `vllm.LLM` takes on a CPU."""

CALLS_FIRST = -1
"""To vLLM the least number comes first."""

SLEEP_LEVEL = 1
"""Weights wait in main memory; at level 2 they would have to be read again."""


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
        parsers = answer_parsers(plan, spec.model.options(VLLM.name, VllmOptions))
        if isinstance(spec.row_block, Inference):
            parsers.check(spec.row_block)
        if parsers.choice.gate is not None:  # forms begin behind the thoughts
            plan = plan.with_arguments(reasoning_parser=parsers.choice.gate)
        return VllmEngine(plan, adapters, parsers)
    except BaseException:
        adapters.folders.close()
        raise


def answer_parsers(plan: EnginePlan, options: VllmOptions) -> AnswerParsers:
    """Returns what will read the answers of a model; see `start.read_model` for what may fail."""
    config, tokenizer = read_model(plan)
    template = template_beside(tokenizer, config) or tokenizer.chat_template
    return AnswerParsers(options, config, tokenizer, template, plan.source.identifier)


class VllmEngine:
    """A model that vLLM runs; starts it.

    Threads may share it: one at a time feeds it. Shards wait for each other; calls are answered
    by whoever feeds it.

    Args:
        plan: How it is started.
        adapters: What it serves besides the model.
        parsers: What reads its answers; None where they are text only.

    Attributes:
        llm: vLLM's `LLMEngine`; None once closed.
        capacity: Requests that it computes at once at most.
    """

    def __init__(
        self, plan: EnginePlan, adapters: ServedAdapters, parsers: AnswerParsers | None = None
    ) -> None:
        self._plan = plan
        self._parsers = parsers
        self._adapters = adapters
        self.llm: Any = None
        self._start()
        try:
            self._turn = TURN if in_process(self.llm) else Turn()
            self._traffic = Traffic()
            self.label = f"vllm {vllm_version()}"
            self.name = plan.source.identifier
            self.revision = folder_revision(plan.place) or str(plan.arguments.get("revision", ""))
            self.capacity: int = self.llm.vllm_config.scheduler_config.max_num_seqs
            self._max_tokens: int = self.llm.model_config.max_model_len
            self._threads = engine_threads(weights_bytes_of(self.llm)) if plan.on_cpu else None
            self._size_bytes = held_bytes(self.llm)
            self._device = device_of(self.llm)
            # Calls are rendered while another thread may be starting the engine again.
            self._tokenizer: Any = self.llm.get_tokenizer()
            self._sees = sees(self.llm)
        except BaseException:
            self._stop()
            raise

    @property
    def device(self) -> str:
        """Where it runs."""
        return self._device

    @property
    def longest(self) -> int:
        """Tokens that a prompt and its answer may have together."""
        return self._max_tokens

    @property
    def size_bytes(self) -> int:
        """Bytes of its weights and its key-value cache."""
        return self._size_bytes

    @property
    def has_chat_template(self) -> bool:
        """Whether prompts are sent as chat messages."""
        return bool(self._template or self._tokenizer.chat_template)

    def render(self, row: InputRow, block: RowBlock) -> Rendered:
        """Renders a row: a chat through the model's template, else as paragraphs.

        Raises:
            ValueError: If the row cannot be read, or the template refuses it.
        """
        if self.has_chat_template:
            return Rendered(self._chat(row, block), special=False)
        return Rendered(render_plain(row.prompt, block, sees=self._sees))

    def _chat(self, row: InputRow, block: RowBlock) -> str:
        return render_chat(
            self._tokenizer,
            row.prompt,
            block,
            sees=self._sees,
            template=self._template,
        )

    def tokenize(self, texts: list[str], *, special: bool = True) -> list[list[int]]:
        """Returns the token ids of rendered texts."""
        if not texts:
            return []
        return self._tokenizer(
            texts,
            add_special_tokens=special,
            return_attention_mask=False,
            verbose=False,
        )["input_ids"]

    def run(self, requests: Iterator[EngineRequest | None], replies: Replies) -> None:
        """Answers all requests, feeding the engine as others finish.

        Raises:
            TaskCancelled: If the task was asked to stop; looked at between steps.
            TransientError: If the engine breaks down again and again.
        """
        ticket = Ticket(serves=self)
        computing = ExitStack()

        def give_way() -> None:
            if self._turn.wanted(ticket):
                computing.close()  # what it has set is the whole process's
                self._turn.give_way(ticket)
                computing.enter_context(self._prepared())

        with self._turn.held(ticket, replies.cancelled):
            self._make_ready()
            read_by = () if self._parsers is None else self._parsers.choice.notes
            for note in (*self._plan.notes, *read_by):
                replies.log(note)
            with computing:
                computing.enter_context(self._prepared())
                Feed(self, replies, self._traffic, give_way).run(requests)

    def call(self, requests: Sequence[EngineRequest], replies: Replies) -> None:
        """Answers requests in the steps of whoever feeds the engine, or feeds it itself.

        Several calls are in the engine at once. Those that are in it when it breaks down are tried
        once more, unless some of their text is out.

        Raises:
            TaskCancelled: If nobody waits any more; looked at between steps.
        """
        ticket = Ticket(urgent=True, serves=self)
        call = Call(requests, replies, ticket.news.set)
        self._traffic.put(call, requests)
        try:
            while not call.ended:
                if self._turn.take(ticket, LOOK_EVERY_S):
                    self._take_steps(ticket, call, replies)
                call.listen()
            call.listen()
        finally:
            call.gone = True
            self._turn.leave(ticket)
        if call.error is not None:
            raise call.error

    def _take_steps(self, ticket: Ticket, call: Call, replies: Replies) -> None:
        """Feeds the engine until the call has ended, or another thread is to have its turn."""

        def going() -> bool:
            call.listen()
            return not call.ended and not self._turn.wanted(ticket)

        try:
            self._make_ready()
            with self._prepared():
                Feed(self, replies, self._traffic).serve(going)
        except Exception as error:  # noqa: BLE001  whatever it is, the next one starts anew
            call.give_up(f"the engine does not work: {cause_of(error)}")
        finally:
            self._turn.leave(ticket)

    def _make_ready(self) -> None:
        if self.llm is None:  # an earlier run could not start it again
            self._start()
        if not self._traffic.running:
            self._steps.in_pieces()

    def add(self, request_id: str, request: EngineRequest) -> RequestParsing | None:
        """Hands a request to vLLM; returns what reads its answers.

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
        parsing = None if self._parsers is None else self._parsers.begin(request)
        params = sampling_params(
            sampling, request.seed, room, stream=request.stream, parsing=parsing
        )
        lora = self._adapters.pick(request.adapter)
        self.llm.add_request(
            request_id,
            self._prompt(request),
            params,
            lora_request=lora,
            priority=CALLS_FIRST if request.urgent else 0,
        )
        return parsing

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
        """Moves the weights to main memory and lets go of the cache, prefixes included."""
        self.llm.sleep(level=SLEEP_LEVEL)

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


class PromptSteps:
    """Decides how many steps vLLM may take to read a prompt on a CPU; does nothing on GPUs.

    Reading in pieces (chunked prefill) fills every step and is faster. But vLLM 0.32 turns the
    generator of a seeded request back after each piece, which torch can only do on GPUs: such a
    request breaks a CPU's engine. So an engine reads in pieces until a seeded request comes, and
    whole prompts from then on until it is empty.

    Args:
        llm: vLLM's `LLMEngine`, which must be empty.
        given: The engine arguments that the template gives.
    """

    def __init__(self, llm: Any, given: Mapping[str, Any]) -> None:
        self._scheduler = llm.engine_core.engine_core.scheduler if in_process(llm) else None
        if self._scheduler is None:
            return
        self._config = self._scheduler.scheduler_config
        self._most = self._config.max_num_batched_tokens
        self._longest = llm.model_config.max_model_len
        generates = llm.model_config.runner_type == "generate"
        self._in_pieces = generates and given.get("enable_chunked_prefill") is not False
        self._step = self._most
        if "max_num_batched_tokens" not in given:
            self._step = min(self._most, STEP_TOKENS)

    def in_pieces(self) -> None:
        """Lets prompts be read in pieces, unless the template forbids it; the engine is empty."""
        if self._scheduler is not None and self._in_pieces:
            self._config.enable_chunked_prefill = True
            self._scheduler.max_num_scheduled_tokens = self._step

    def whole(self) -> None:
        """Has prompts read in one step each, for the sake of a seeded request.

        Raises:
            ValueError: If the template leaves too few tokens to a step for that.
        """
        if self._scheduler is None:
            return
        if self._most < self._longest:
            raise ValueError(
                f"model.vllm.max_num_batched_tokens is {self._most}: on a CPU, vLLM answers at a "
                f"temperature above 0 only if it is not less than max_model_len, {self._longest}"
            )
        self._config.enable_chunked_prefill = False
        self._scheduler.max_num_scheduled_tokens = self._most


def weights_bytes_of(llm: Any) -> int:
    """Returns the bytes of an engine's weights, at least as many as their files have.

    An engine in another process shows no more, and on a CPU vLLM packs most weights into a form
    that torch does not see.
    """
    folder = _folder(llm.model_config.model, llm.model_config.revision)
    files = [file for kind in ("*.safetensors", "*.bin") for file in folder.glob(kind)]
    stored = sum(file.stat().st_size for file in files)
    if not in_process(llm):
        return stored
    return max(stored, weights_bytes(llm.model_executor.driver_worker.model_runner.model))


def held_bytes(llm: Any) -> int:
    """Returns the bytes that an engine holds on its devices: weights and key-value cache.

    On a GPU vLLM reserves a share of each device for both, unless it is told how large the cache
    is to be.
    """
    cache_bytes = llm.vllm_config.cache_config.kv_cache_memory_bytes
    if cache_bytes is not None:
        return weights_bytes_of(llm) + cache_bytes * _devices(llm)
    from vllm.platforms import current_platform

    share = llm.vllm_config.cache_config.gpu_memory_utilization
    return int(share * current_platform.get_device_total_memory()) * _devices(llm)


def device_of(llm: Any) -> str:
    """Returns where an engine runs: `cpu`, `cuda:0`, `cuda:0-3`."""
    kind = llm.vllm_config.device_config.device_type
    if kind == "cpu":
        return "cpu"
    count = _devices(llm)
    return f"{kind}:0" if count == 1 else f"{kind}:0-{count - 1}"


def _folder(model: str, revision: str | None) -> Path:
    """Returns where a model's files lie; of one from the hub, its folder in the hub's cache."""
    if Path(model).is_dir():
        return Path(model)
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(model, "config.json", revision=revision)
    return Path(config).parent if isinstance(config, str) else Path(model)


def _devices(llm: Any) -> int:
    return llm.vllm_config.parallel_config.world_size


def can_sleep(arguments: Mapping[str, Any]) -> bool:
    """Returns whether an engine that was started with these arguments can sleep."""
    return bool(arguments.get("enable_sleep_mode"))
