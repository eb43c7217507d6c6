"""Loading what a training starts from: model, adapters and tokenizer with a pad token.

Otherwise a model never learns to stop: what follows an answer is left out of the loss, and its end
along with it.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

from mloc_dagster.errors import InputError, MissingExtraError, TerminalError
from mloc_dagster.executors.adapters import adapter_folder
from mloc_dagster.executors.model_source import (
    clear_load_errors,
    hub_commit,
    model_place,
    trusts_remote_code,
)
from mloc_dagster.executors.training.devices import (
    check_gpu,
    pick_device,
    quantization_config,
    seed_everything,
    weights_dtype,
)
from mloc_dagster.executors.training.lora import continue_adapter, merge_adapter, wrap
from mloc_dagster.executors.training.weight_files import remember_source, weights_kind
from mloc_dagster.schema import TrainingSpec
from mloc_dagster.settings import settings

ADDED = "<|pad|>"
_FITTING = ("pad", "reserved", "unused")


def ensure_pad_token(model: Any, tokenizer: Any, log: Callable[[str], None]) -> None:
    """Gives model and tokenizer a pad token that is no end token, a known one where possible."""
    ends = _end_ids(model, tokenizer)
    pad = tokenizer.pad_token_id
    if pad is None or pad in ends:
        taken = next(_candidates(tokenizer, ends), None)
        if taken is None:
            tokenizer.add_special_tokens({"pad_token": ADDED})
        else:
            tokenizer.pad_token = taken
        log(f"the tokenizer has no pad token of its own: {tokenizer.pad_token!r} is used")
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        # Its vector never counts; a mean of the others, which is the default, would take minutes.
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        log(f"the model's embeddings grew from {rows} to {len(tokenizer)} rows")
    model.config.pad_token_id = tokenizer.pad_token_id
    generation = getattr(model, "generation_config", None)
    if generation is not None:
        generation.pad_token_id = tokenizer.pad_token_id


def _end_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    generation = getattr(model, "generation_config", None)
    given = generation.eos_token_id if generation is not None else model.config.eos_token_id
    several = given if isinstance(given, list | tuple) else [given]
    return frozenset(each for each in [*several, tokenizer.eos_token_id] if each is not None)


def _candidates(tokenizer: Any, ends: frozenset[int]) -> Iterator[str]:
    """Yields special tokens that no text contains, best first."""
    special = {
        token.content: number
        for number, token in sorted(tokenizer.added_tokens_decoder.items())
        if token.special and number not in ends
    }
    for part in _FITTING:
        yield from (token for token in special if part in token.lower())
    if tokenizer.unk_token is not None and tokenizer.unk_token_id not in ends:
        yield tokenizer.unk_token


Log = Callable[[str], None]
_Head = Literal["causal_lm", "classifier"]
_CLASSIFIER = "ForSequenceClassification"


def load_policy(spec: TrainingSpec, start_from: Path | None, log: Log) -> tuple[Any, Any]:
    """Returns a causal language model that is ready to be trained, and its tokenizer.

    Args:
        spec: The task's spec. With `lora`, the model is a `PeftModel`.
        start_from: A folder with a full model, which takes the place of the model's own weights, or
            with a LoRA adapter, which the training goes on with; without `lora` it is merged.
        log: Hears of choices that the template leaves open.

    Raises:
        InputError: If weights or adapters cannot be found.
        MissingExtraError: If torch, transformers or peft is not installed.
        TerminalError: If the model cannot be loaded or trained as the spec asks.
        TransientError: If something cannot be downloaded now.
    """
    return _load(spec, start_from, log, "causal_lm")


def load_classifier(spec: TrainingSpec, start_from: Path | None, log: Log) -> tuple[Any, Any]:
    """Returns a sequence classifier with one logit that is ready to be trained, and its tokenizer.

    Arguments and errors are those of `load_policy`. Of a causal language model, the layer that
    scores is new.
    """
    return _load(spec, start_from, log, "classifier")


def _load(spec: TrainingSpec, start_from: Path | None, log: Log, head: _Head) -> tuple[Any, Any]:
    if not (importlib.util.find_spec("torch") and importlib.util.find_spec("transformers")):
        raise MissingExtraError("training", "hf")
    device = pick_device(spec, log)
    if device != "cpu":
        check_gpu(spec, device)
    kind = weights_kind(start_from) if start_from else None
    place = str(start_from) if kind == "model" else model_place(spec.model.source)
    seed_everything(spec.training.seed)  # layers that are new here are the same each time
    with clear_load_errors(spec.model.source):
        tokenizer = _load_tokenizer(spec, start_from)
        model = _load_model(spec, place, device, head)
    ensure_pad_token(model, tokenizer, log)
    model = _with_adapters(model, spec, start_from if kind == "adapter" else None, log)
    if device == "cpu":
        model.to(device)
    model.train()
    return model, tokenizer


def _with_adapters(model: Any, spec: TrainingSpec, start_from: Path | None, log: Log) -> Any:
    for number, adapter in enumerate(spec.model.adapters):
        if adapter.apply != "merge":
            raise InputError(
                f"model.adapters[{number}] has apply: {adapter.apply}, which is for inference: a "
                "training takes apply: merge, or goes on with the adapter in checkpoint.load"
            )
        with adapter_folder(adapter) as folder:
            model = merge_adapter(model, folder)
    if start_from is not None:
        model = continue_adapter(model, start_from, spec, log)
    return wrap(model, spec)


def _load_tokenizer(spec: TrainingSpec, start_from: Path | None) -> Any:
    """Returns the tokenizer that lies beside the weights, else the model's own."""
    from transformers import AutoTokenizer

    if start_from is not None and (start_from / "tokenizer_config.json").is_file():
        return AutoTokenizer.from_pretrained(str(start_from), **_origin(spec, str(start_from)))
    place = model_place(spec.model.source)
    return AutoTokenizer.from_pretrained(place, **_origin(spec, place))


def _load_model(spec: TrainingSpec, place: str, device: str, head: _Head) -> Any:
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    if Path(place).is_dir():
        weights_kind(Path(place))
    origin = _origin(spec, place)
    config = transformers.AutoConfig.from_pretrained(place, **origin)
    _check_head(config, head, place)
    own = str(config.dtype or "float32").removeprefix("torch.")
    dtype = weights_dtype(spec, device, own)
    options = spec.model.transformers
    how: dict[str, Any] = {
        "dtype": getattr(torch, dtype),
        "attn_implementation": options.attn_implementation,
        "low_cpu_mem_usage": options.low_cpu_mem_usage,
        "use_safetensors": None if settings().allow_pickle else True,
        "device_map": _device_map(spec, device),
        "quantization_config": quantization_config(spec, device, dtype),
        "num_labels": 1 if head == "classifier" else None,
    }
    loader: Any = transformers.AutoModelForCausalLM
    if head == "classifier":
        loader = transformers.AutoModelForSequenceClassification
    given = {name: value for name, value in how.items() if value is not None}
    model = loader.from_pretrained(place, **origin, **given)
    remember_source(model, own)
    if how["quantization_config"] is not None:
        from peft import prepare_model_for_kbit_training

        model = prepare_model_for_kbit_training(
            model, use_gradient_checkpointing=spec.training.gradient_checkpointing
        )
    return model


def _origin(spec: TrainingSpec, place: str) -> dict[str, Any]:
    """Returns how files are had from a place: a folder, or the hub."""
    source = spec.model.source
    asked = spec.model.transformers.trust_remote_code
    on_hub = source.type == "huggingface" and place == source.identifier
    origin: dict[str, Any] = {
        "trust_remote_code": trusts_remote_code(source, asked=asked),
        "local_files_only": not on_hub,
    }
    commit = hub_commit(source) if on_hub else ""
    return {**origin, "revision": commit} if commit else origin


def _device_map(spec: TrainingSpec, device: str) -> Any:
    """Returns where weights are loaded to; None for main memory.

    DeepSpeed places them itself, and a process of several has but the one GPU.
    """
    if device == "cpu" or spec.training.deepspeed is not None:
        return None
    return spec.model.transformers.device_map or {"": device}


def _check_head(config: Any, head: _Head, place: str) -> None:
    """Raises if the weights are another kind of model's: what is missing would be random."""
    architectures = config.architectures or []
    classifies = any(each.endswith(_CLASSIFIER) for each in architectures)
    if classifies and head == "causal_lm":
        raise TerminalError(
            f"the model in {place!r} is a classifier ({architectures[0]}), which writes no text: "
            "start from a causal language model"
        )
    if classifies and config.num_labels != 1:
        raise TerminalError(
            f"the classifier in {place!r} has {config.num_labels} labels: a reward model has one"
        )
