"""LoRA adapters of a training: new ones, ones that it goes on with, and ones that are merged."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mloc_dagster.errors import TerminalError, nearest_hint
from mloc_dagster.executors.adapters import require_peft
from mloc_dagster.executors.training.memory_estimate import is_out_of_memory
from mloc_dagster.schema import Lora, TrainingSpec

ALL_LINEAR = "all-linear"


def wrap(model: Any, spec: TrainingSpec) -> Any:
    """Returns the model with a new adapter to train, if the spec has `lora` and it has none yet.

    Raises:
        MissingExtraError: If peft is not installed.
        TerminalError: If the adapter does not fit the model.
    """
    if spec.lora is None:
        return model
    require_peft()
    from peft import PeftModel, get_peft_model

    if isinstance(model, PeftModel):
        return model
    with _clear_errors("the lora block"):
        wrapped = get_peft_model(model, lora_config(spec.lora, model))
    return _trainable(wrapped, spec)


def lora_config(block: Lora, model: Any) -> Any:
    """Returns the `peft.LoraConfig` of a `lora` block; its task type is that of the model.

    Raises:
        TerminalError: If the model has no layer of a name in `target_modules`.
    """
    from peft import LoraConfig
    from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as KNOWN

    targets = block.target_modules
    if targets is None:
        targets = None if model.config.model_type in KNOWN else ALL_LINEAR
    else:
        _check_targets(targets, model)
    given = block.model_dump(exclude={"target_modules", "task_type"}, exclude_none=True)
    return LoraConfig(
        **given,
        target_modules=list(targets) if isinstance(targets, tuple) else targets,
        task_type=task_type_of(model),
    )


def task_type_of(model: Any) -> str:
    """Returns PEFT's task type for a model: `SEQ_CLS` or `CAUSAL_LM`."""
    classifies = type(model).__name__.endswith("ForSequenceClassification")
    return "SEQ_CLS" if classifies else "CAUSAL_LM"


def merge_adapter(model: Any, folder: Path) -> Any:
    """Returns the model with an adapter's changes added to its weights.

    Raises:
        TerminalError: If the adapter does not fit the model.
    """
    require_peft()
    from peft import PeftConfig, PeftModel

    with _clear_errors(f"the adapter {folder}"):
        config = PeftConfig.from_pretrained(str(folder))
        config.task_type = None  # only the weights count here, not what the adapter was made for
        trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
        merged = PeftModel.from_pretrained(model, str(folder), config=config).merge_and_unload()
    for name, weight in merged.named_parameters():
        if name in trained:  # PEFT leaves all weights frozen
            weight.requires_grad_(True)
    return merged


def continue_adapter(
    model: Any, folder: Path, spec: TrainingSpec, log: Callable[[str], None]
) -> Any:
    """Returns the model with an earlier adapter: to go on with, or merged where that cannot be.

    It is merged if the spec has no `lora`, and if it was made for another kind of model: what a
    chat model has learned is then part of a classifier that gets an adapter of its own.

    Args:
        model: The model without adapters.
        folder: The adapter's.
        spec: The task's spec.
        log: Hears of settings that are the adapter's and not the template's.

    Raises:
        TerminalError: If the adapter does not fit the model.
    """
    require_peft()
    from peft import PeftConfig, PeftModel

    with _clear_errors(f"the adapter {folder}"):
        config: Any = PeftConfig.from_pretrained(str(folder))
    kind = task_type_of(model)
    if config.task_type == "SEQ_CLS" and kind != "SEQ_CLS":
        raise TerminalError(
            f"the adapter {folder} is a classifier's, and does not fit a chat model"
        )
    if spec.lora is None or config.task_type != kind:
        if spec.lora is not None:
            log(f"the adapter to start from is of type {config.task_type}: merged, a new one begun")
        return merge_adapter(model, folder)
    log("training goes on with the adapter to start from" + _differences(spec.lora, config))
    with _clear_errors(f"the adapter {folder}"):
        found = PeftModel.from_pretrained(model, str(folder), is_trainable=True)
    return _trainable(found, spec)


def _differences(block: Lora, config: Any) -> str:
    """Says which settings in the template differ from the adapter's, which count."""
    differing: list[str] = []
    for name in sorted(block.model_fields_set - {"task_type"}):
        asked, has = getattr(block, name), getattr(config, name, None)
        if isinstance(asked, tuple):
            same = isinstance(has, list | tuple | set) and set(asked) == set(has)
        else:
            same = asked is None or asked == has
        if not same:
            has = sorted(has) if isinstance(has, set) else has
            differing.append(f"lora.{name} stays {has!r} (the template has {asked!r})")
    return "; ".join(["", *differing])


def _check_targets(targets: tuple[str, ...] | str, model: Any) -> None:
    names = [name for name, _ in model.named_modules() if name]
    if targets == ALL_LINEAR:
        return
    if isinstance(targets, str):
        try:
            missing = [] if any(re.fullmatch(targets, name) for name in names) else [targets]
        except re.error as error:
            raise TerminalError(
                f"lora.target_modules: {targets!r} is no regular expression: {error}"
            ) from error
    else:
        missing = [
            each for each in targets if not any(f".{name}".endswith(f".{each}") for name in names)
        ]
    if missing:
        layers = _layers(model)
        listed = ", ".join(sorted(layers))
        raise TerminalError(
            f"lora.target_modules: the model has no {', '.join(map(repr, missing))}"
            f"{nearest_hint(missing[0], layers)}; its layers are {listed}, or {ALL_LINEAR!r}"
        )


def _layers(model: Any) -> set[str]:
    """Returns the names of layers that an adapter can change, without where they are."""
    kinds = ("Linear", "Conv1D", "Embedding")
    return {
        name.rsplit(".", 1)[-1]
        for name, module in model.named_modules()
        if type(module).__name__.startswith(kinds)
    }


def _trainable(model: Any, spec: TrainingSpec) -> Any:
    if spec.training.gradient_checkpointing:
        # Layers that are computed again hand gradients on only if their input asks for one.
        model.enable_input_require_grads()
    return model


@contextmanager
def _clear_errors(what: str) -> Iterator[None]:
    """Turns what PEFT raises, or warns of when weights are missing, into an error of ours."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", "Found missing adapter keys", UserWarning)
            yield
    except (ValueError, KeyError, TypeError, RuntimeError, UserWarning) as error:
        if is_out_of_memory(error):
            raise
        reason = " ".join(str(error).split())[:500]
        raise TerminalError(f"{what} does not fit the model: {reason}") from error
