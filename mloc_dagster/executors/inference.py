"""The inference executor: rows → requests → answers → rows, whichever engine answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from hashlib import blake2b
from itertools import chain, islice
from pathlib import Path

from mloc_dagster.errors import TransientError
from mloc_dagster.executors.base import ModelKey, ShardContext, ShardInput
from mloc_dagster.executors.engines.choice import choose_engine, loader_of
from mloc_dagster.executors.engines.protocol import (
    Completion,
    Engine,
    EngineRequest,
    Rendered,
    Replies,
    SleepingEngine,
)
from mloc_dagster.executors.image_stream import with_pictures
from mloc_dagster.executors.prompts import RowBlock, RowOptions, is_blank
from mloc_dagster.executors.reuse_identity import (
    LoadedFiles,
    answering_revision,
    earlier_answers,
    file_stamps,
    files_changed,
    loaded_revision,
    remember_files,
)
from mloc_dagster.executors.row_reuse import RequestKeys, RowReuse
from mloc_dagster.results import InputRow, OutputRow, failed_row
from mloc_dagster.schema import (
    EmbeddingSpec,
    Inference,
    ModelSource,
    ModelSpec,
    Pooling,
    canonical_json,
    certain_engine,
    changed_options,
    idle_options,
)


class InferenceExecutor:
    """Generates text, or a vector, for each row, on the engine that the task gets."""

    def model_key(self, spec: ModelSpec) -> ModelKey | None:
        """Returns what identifies the model: source, loading options, adapters and devices.

        Which engine answers is decided where the model is loaded, the same way each time: the
        key has to be the same on the machine that only hands out the work.
        """
        model = spec.model
        options = {
            each.name: changed_options(block, each.batching)
            for each, block in model.engine_blocks().items()
        }
        parts = {
            "source": model.source.model_dump(mode="json"),
            "options": {name: each for name, each in options.items() if each},
            "adapters": [adapter.model_dump(mode="json") for adapter in model.adapters],
            "enforce_cpu": spec.enforce_cpu,
            "gpus": spec.resources.hardware.gpu.count,
            "task_type": spec.task_type,
        }
        if isinstance(spec, EmbeddingSpec):
            parts["pooling_type"] = spec.pooling.pooling_type  # some engines start with it
        identity = canonical_json(parts)
        return ModelKey(model.engine or "auto", identity, name=_short_name(model.source))

    def load(self, spec: ModelSpec) -> Engine:
        """Loads the model into the engine that `choose_engine` names.

        Raises:
            MissingExtraError: If the engine is not installed.
            TerminalError: If there is no such model, or the engine cannot run it.
            TransientError: If the hub cannot be reached, or files change meanwhile.
        """
        stamps = file_stamps(spec)
        engine = loader_of(choose_engine(spec).engine).load(spec)
        revision = answering_revision(spec, engine)
        if file_stamps(spec) != stamps:
            engine.close()
            raise TransientError(
                f"the files of {spec.model.source.identifier!r} changed while they were loaded"
            )
        remember_files(engine, LoadedFiles(stamps, revision))
        return engine

    def unload(self, model: Engine) -> None:
        """Ends the engine."""
        model.close()

    def is_current(self, model: Engine, spec: ModelSpec) -> bool:
        """Returns whether the model's local files are still those that it was loaded from."""
        return not files_changed(spec, model)

    def revision(self, model: Engine) -> str:
        """Returns which state of the model answers: a commit of the hub, or a hash of its files."""
        return loaded_revision(model)

    def asleep_bytes(self, model: Engine) -> int | None:
        """Returns what an engine takes asleep; None if it cannot sleep."""
        return model.asleep_bytes if isinstance(model, SleepingEngine) else None

    def sleep(self, model: Engine) -> None:
        """Frees the GPUs of an engine that can sleep."""
        if isinstance(model, SleepingEngine):
            model.sleep()

    def wake(self, model: Engine) -> None:
        """Brings a sleeping engine back to its GPUs."""
        if isinstance(model, SleepingEngine):
            model.wake()

    def model_bytes(self, model: Engine) -> int:
        """Returns the bytes of weights and key-value cache."""
        return model.size_bytes

    def run(self, shard: ShardInput, spec: ModelSpec, model: Engine, context: ShardContext) -> None:
        """Answers every row of the shard, emitting each as it finishes.

        Raises:
            TaskCancelled: If the task was asked to stop; looked at between tokens.
        """
        choice = choose_engine(spec)
        context.log(f"engine: {model.label} on {model.device}: {choice.reason}")
        # Where the template names the engine, its compiler has said so.
        if certain_engine(spec) is None and shard.index == 0:
            for block, option in sorted(idle_options(spec.model, choice.engine)):
                context.log(f"model.{block}.{option} has no effect: {choice.reason}")
        context.log(f"model: {model.name}, revision {loaded_revision(model)}")
        answer_rows(shard, spec, model, context)


def _short_name(source: ModelSource) -> str:
    return Path(source.identifier).name if source.type == "local" else source.identifier


WINDOW_ROWS = 64
"""Rows that are tokenised at once: enough for the tokenizer's threads, too few to stall a step."""


def answer_rows(shard: ShardInput, spec: ModelSpec, engine: Engine, context: ShardContext) -> None:
    """Sends the rows of a shard through an engine, and emits each as it finishes.

    A row that cannot be read, rendered or answered is emitted with its error.

    Raises:
        TaskCancelled: If the task was asked to stop.
        TransientError: If the engine is lost and another attempt may help.
    """
    options = RowOptions(spec.row_block)
    with earlier_answers(spec, engine, context.log) as earlier:
        reuse = RowReuse(RequestKeys(earlier.identity), context.emit, earlier.rows)
        results = _Answers(engine, context, reuse)
        rendered = chain.from_iterable(_windows(shard, options, engine, results))
        # Before reuse: which pictures a row shows is part of what makes it equal to another.
        pictured = with_pictures(
            rendered, WINDOW_ROWS, shard.open_file, results.refuse_request, context.cancelled
        )
        with closing(pictured):  # whatever the engine raises, no download goes on
            engine.run(
                reuse.needed(pictured),
                Replies(
                    results.done, results.failed, context.cancelled, context.log, results.started
                ),
            )


@dataclass(frozen=True, slots=True)
class _Answers:
    """Turns what becomes of a request into a row."""

    engine: Engine
    context: ShardContext
    reuse: RowReuse

    def done(self, request: EngineRequest, completion: Completion) -> None:
        answers = completion.answers
        row = request.row
        answered = OutputRow(
            index=row.index,
            prompt=row.prompt,
            output=answers[0].text if answers else "",
            finish_reason=answers[0].finish_reason if answers else "stop",
            outputs=[each.text for each in answers] if len(answers) > 1 else None,
            finish_reasons=[each.finish_reason for each in answers] if len(answers) > 1 else None,
            prompt_tokens=completion.prompt_tokens,
            completion_tokens=sum(each.tokens for each in answers),
            latency_s=completion.latency_s,
            engine=self.engine.label,
            custom_id=row.custom_id,
            embedding=completion.embedding,
            encoding=row.encoding,
            logprobs=_logprobs(completion),
            cached_tokens=completion.cached_tokens,
            padding_tokens=completion.padding_tokens,
            engine_s=completion.engine_s,
        )
        self.reuse.settle(request, answered, completion)

    def failed(self, request: EngineRequest, reason: str) -> None:
        failed = failed_row(request.row, reason, self.engine.label, len(request.tokens))
        self.reuse.settle(request, failed)

    def started(self, requests: Sequence[EngineRequest]) -> None:
        self.context.started([request.row.index for request in requests])

    def refuse_request(self, request: EngineRequest, reason: str) -> None:
        self.refuse(request.row, reason)

    def refuse(self, row: InputRow, reason: str) -> None:
        self.context.emit(failed_row(row, reason, self.engine.label))


def _windows(
    shard: ShardInput, options: RowOptions, engine: Engine, results: _Answers
) -> Iterator[list[EngineRequest]]:
    """Yields what the engine can answer, rendering a window of rows when the engine wants more."""
    rows = iter(shard.rows)
    while window := list(islice(rows, WINDOW_ROWS)):
        ready: list[tuple[InputRow, RowBlock, Rendered]] = []
        for row in window:
            try:
                block = options.of(row)
                ready.append((row, block, _render(row, block, engine)))
            except ValueError as error:
                results.refuse(row, str(error))
        tokens = _tokens([rendered for _, _, rendered in ready], engine)
        requests: list[EngineRequest] = []
        for (row, block, rendered), ids in zip(ready, tokens, strict=True):
            if not ids:
                results.refuse(row, "the prompt is empty: it has no token at all")
            else:
                requests.append(_request(row, block, rendered, ids, shard.seed))
        yield requests


def _tokens(rendered: list[Rendered], engine: Engine) -> list[list[int]]:
    """Returns the token ids of each; what wants special tokens is tokenised by itself."""
    found: list[list[int]] = [[] for _ in rendered]
    for special in (True, False):
        places = [place for place, each in enumerate(rendered) if each.special is special]
        texts = [rendered[place].text for place in places]
        for place, ids in zip(places, engine.tokenize(texts, special=special), strict=True):
            found[place] = ids
    return found


def _request(
    row: InputRow, block: RowBlock, rendered: Rendered, tokens: list[int], plan_seed: int
) -> EngineRequest:
    if isinstance(block, Pooling):
        return EngineRequest(row, rendered, tokens, pooling=block, adapter=row.adapter)
    seed = row_seed(block, plan_seed, row.index)
    return EngineRequest(row, rendered, tokens, sampling=block, seed=seed, adapter=row.adapter)


def row_seed(block: Inference, plan_seed: int, index: int) -> int:
    """Returns what seeds a row's answers.

    With a seed in the template equal rows have equal answers, as in vLLM. Without one each row
    has a stream of its own, which a retry repeats.
    """
    if block.seed is not None:
        return block.seed
    digest = blake2b(f"{plan_seed}:{index}".encode(), digest_size=8).digest()
    return int.from_bytes(digest) >> 1  # vLLM's seeds are signed


def _render(row: InputRow, block: RowBlock, engine: Engine) -> Rendered:
    if row.error is not None:
        raise ValueError(row.error)
    if is_blank(row.prompt):
        raise ValueError("the prompt is empty")
    if row.verbatim and isinstance(row.prompt, str) and not isinstance(block, Pooling):
        return Rendered(row.prompt)
    return engine.render(row, _instruction(block))


def _instruction(block: RowBlock) -> str | None:
    return block.instruction if isinstance(block, Pooling) else block.system_prompt


def _logprobs(completion: Completion) -> list[list] | None:
    given = [each.logprobs for each in completion.answers if each.logprobs is not None]
    return given or None
