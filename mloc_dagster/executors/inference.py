"""The inference executor: rows → requests → answers → rows, whichever engine answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path

from mloc_dagster.errors import TransientError
from mloc_dagster.executors.base import Caller, ModelKey, ShardContext, ShardInput
from mloc_dagster.executors.budget import most_new_tokens
from mloc_dagster.executors.calls import answer_call, between_calls
from mloc_dagster.executors.engines.choice import choose_engine, loader_of
from mloc_dagster.executors.engines.protocol import (
    Completion,
    Engine,
    EngineRequest,
    Replies,
    SleepingEngine,
)
from mloc_dagster.executors.image_stream import with_pictures
from mloc_dagster.executors.prompts import RowOptions
from mloc_dagster.executors.reuse_identity import (
    LoadedFiles,
    answering_revision,
    earlier_answers,
    file_stamps,
    files_changed,
    loaded_revision,
    remember_files,
)
from mloc_dagster.executors.row_requests import (
    WINDOW_ROWS,
    answered_row,
    failed_request,
    rendered_rows,
)
from mloc_dagster.executors.row_reuse import RequestKeys, RowReuse
from mloc_dagster.results import InputRow, OutputRow, Rates, failed_row
from mloc_dagster.schema import (
    EmbeddingSpec,
    ModelSource,
    ModelSpec,
    canonical_json,
    certain_engine,
    changed_options,
    digest_of,
    idle_options,
    secrets_in,
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
        if secrets := list(secrets_in(model)):  # whoever pays is not to be mixed up
            parts["secrets"] = digest_of(*secrets).hex()
        identity = canonical_json(parts)
        return ModelKey(model.engine or "auto", identity, name=short_name(model.source))

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
        self.compute(shard, spec, model, context)

    def compute(
        self, shard: ShardInput, spec: ModelSpec, model: Engine, context: ShardContext
    ) -> None:
        """Computes the rows of a shard; see `run`."""
        answer_rows(shard, spec, model, context)

    def answer(
        self, rows: Sequence[InputRow], spec: ModelSpec, model: Engine, caller: Caller
    ) -> Sequence[OutputRow]:
        """Answers the rows of one interactive request, as a shard's with the same seed.

        Raises:
            TaskCancelled: If the caller hung up; looked at between tokens.
            TransientError: If the engine is lost.
        """
        return answer_call(rows, spec, model, caller)


def short_name(source: ModelSource) -> str:
    """Returns what people call a model: of a folder its last part."""
    return Path(source.identifier).name if source.type == "local" else source.identifier


def answer_rows(shard: ShardInput, spec: ModelSpec, engine: Engine, context: ShardContext) -> None:
    """Sends the rows of a shard through an engine, and emits each as it finishes.

    A row that cannot be read, rendered or answered is emitted with its error.

    Raises:
        TaskCancelled: If the task was asked to stop.
        TransientError: If the engine is lost and another attempt may help.
    """
    options = RowOptions(spec.row_block, certain_engine(spec))
    with earlier_answers(spec, engine, context.log) as earlier:
        reuse = RowReuse(RequestKeys(earlier.identity), context.emit, earlier.rows)
        results = _Answers(engine, context, reuse)
        rendered = chain.from_iterable(
            rendered_rows(
                *(shard.rows, options, shard.seed, engine, results.refuse), _room_of(spec)
            )
        )
        # Before reuse: which pictures a row shows is part of what makes it equal to another.
        pictured = with_pictures(
            rendered, WINDOW_ROWS, shard.open_file, results.refuse_request, context.cancelled
        )
        with (
            closing(pictured),  # whatever the engine raises, no download goes on
            between_calls(engine, context.cancelled),
        ):
            engine.run(
                reuse.needed(pictured),
                Replies(
                    results.done, results.failed, context.cancelled, context.log, results.started
                ),
            )


def _room_of(spec: ModelSpec) -> Callable[[int], int | None]:
    """Returns what a row may write by its budget, after a prompt of so many tokens."""
    return partial(most_new_tokens, spec.budget.per_row, Rates.of(spec.resources))


@dataclass(frozen=True, slots=True)
class _Answers:
    """Turns what becomes of a request into a row."""

    engine: Engine
    context: ShardContext
    reuse: RowReuse

    def done(self, request: EngineRequest, completion: Completion) -> None:
        answered = answered_row(request, completion, self.engine)
        self.reuse.settle(request, answered, completion)

    def failed(self, request: EngineRequest, reason: str) -> None:
        self.reuse.settle(request, failed_request(request, reason, self.engine))

    def started(self, requests: Sequence[EngineRequest]) -> None:
        self.context.started([request.row.index for request in requests])

    def refuse_request(self, request: EngineRequest, reason: str) -> None:
        self.refuse(request.row, reason)

    def refuse(self, row: InputRow, reason: str) -> None:
        self.context.emit(failed_row(row, reason, self.engine.label))
