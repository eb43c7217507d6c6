"""The task type that sends each row through a model: it picks the engine and feeds it."""

from __future__ import annotations

from pathlib import Path

from mloc_dagster.errors import TransientError
from mloc_dagster.executors.base import ModelKey, ShardContext, ShardInput
from mloc_dagster.executors.engines.choice import choose_engine, loader_of
from mloc_dagster.executors.engines.protocol import Engine, SleepingEngine
from mloc_dagster.executors.inference_run import answer_rows
from mloc_dagster.executors.reuse_identity import (
    LoadedFiles,
    answering_revision,
    file_stamps,
    files_changed,
    loaded_revision,
    remember_files,
)
from mloc_dagster.schema.canonical import canonical_json
from mloc_dagster.schema.engine_type import changed_options
from mloc_dagster.schema.engines import certain_engine, idle_options
from mloc_dagster.schema.model import ModelSource
from mloc_dagster.schema.task import EmbeddingSpec, ModelSpec


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
