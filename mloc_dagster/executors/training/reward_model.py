"""A sequence classifier as a reward: a score for each answer to a prompt."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from mloc_dagster.errors import TerminalError, nearest_hint
from mloc_dagster.executors.model_source import clear_load_errors, hub_commit
from mloc_dagster.executors.training.sequences import (
    Speech,
    answered,
    class_logits,
    messages,
    token_limit,
)
from mloc_dagster.schema import ModelSource, RewardModel

Pick = Callable[[Sequence[float]], float]
"""Makes a score of the logits of all classes."""

_ADAPTER = "adapter_config.json"


class ClassifierScore:
    """Scores answers by a classifier.

    Args:
        model: The classifier.
        tokenizer: Its tokenizer.
        pick: Makes a score of its logits.
        plain: Whether prompts that are texts are judged as they are, though there is a chat
            template. Messages go through the template wherever there is one.
    """

    def __init__(self, model: Any, tokenizer: Any, pick: Pick, *, plain: bool = False) -> None:
        self._model, self._tokenizer = model, tokenizer
        self._pick = pick
        self._template = bool(tokenizer.chat_template)
        self._plain = plain
        self._limit = token_limit(model, tokenizer)

    def __call__(
        self,
        prompts: Sequence[Speech],
        completions: Sequence[str],
        columns: Mapping[str, Sequence[Any]],
    ) -> list[float]:
        """Returns a score for each completion."""
        pairs = zip(map(self._judged, prompts), completions, strict=True)
        ids = [answered(self._tokenizer, *pair, limit=self._limit).ids for pair in pairs]
        return [self._pick(logits) for logits in class_logits(self._model, ids)]

    def _judged(self, prompt: Speech) -> Speech:
        if isinstance(prompt, str):
            chat = self._template and not self._plain
            return messages(prompt, "user") if chat else prompt
        if self._template:
            return prompt
        return "".join(f"{each['content']}\n\n" for each in prompt)


def load_reward_model(
    block: RewardModel, device: Any, log: Callable[[str], None], *, plain: bool = False
) -> ClassifierScore:
    """Loads the classifier that a `reward_model` block names.

    Args:
        block: The block.
        device: Where it computes.
        log: Hears what is loaded.
        plain: As in `ClassifierScore`.

    Raises:
        TerminalError: If there is no such classifier, or its classes do not fit the block.
        TransientError: If the hub cannot be reached.
    """
    import torch
    from transformers import AutoTokenizer

    source = _source(block)
    local = source.type == "local"
    place = _local_place(block.identifier) if local else block.identifier
    origin: dict[str, Any] = {"local_files_only": local}
    if commit := hub_commit(source):
        origin["revision"] = commit
    # Half precision is slow on a CPU, and tells close answers apart less well.
    dtype = torch.float32 if torch.device(device).type == "cpu" else "auto"
    with clear_load_errors(source):
        tokenizer = AutoTokenizer.from_pretrained(place, **origin)
        load = _load_adapter if local and (Path(place) / _ADAPTER).is_file() else _load_whole
        model = load(place, tokenizer, dtype, origin)
    if model.config.pad_token_id is None and tokenizer.pad_token_id is not None:
        model.config.pad_token_id = tokenizer.pad_token_id
    pick = score_of(block, model.config)
    model.to(device).eval().requires_grad_(False)
    log(f"reward model: {block.identifier} ({model.config.num_labels} logits)")
    return ClassifierScore(model, tokenizer, pick, plain=plain)


def score_of(block: RewardModel, config: Any) -> Pick:
    """Returns what makes a score of a classifier's logits.

    Args:
        block: How: the logit of a class, or positive less negative.
        config: The classifier's, with the names of its classes.

    Raises:
        TerminalError: If it has no such classes.
    """
    names = {int(place): str(name) for place, name in config.id2label.items()}
    if block.type == "sentiment":
        good = _only_class(block, names, "pos")
        bad = _only_class(block, names, "neg")
        return lambda logits: logits[good] - logits[bad]
    if block.label is None:
        return lambda logits: logits[-1]
    found = [place for place, name in names.items() if name.lower() == block.label.lower()]
    if not found:
        hint = nearest_hint(block.label, names.values())
        raise TerminalError(
            f"the reward model {block.identifier!r} has no class {block.label!r}{hint}"
        )
    chosen = found[0]
    return lambda logits: logits[chosen]


def _only_class(block: RewardModel, names: Mapping[int, str], beginning: str) -> int:
    found = [place for place, name in names.items() if name.lower().startswith(beginning)]
    if len(found) == 1:
        return found[0]
    raise TerminalError(
        f"the reward model {block.identifier!r} has {len(found) or 'no'} classes whose names begin "
        f"with {beginning!r}, where type: sentiment needs one; its classes: "
        f"{', '.join(names.values())}. With type: classification, label names the class that counts"
    )


def _source(block: RewardModel) -> ModelSource:
    if "://" in block.identifier or Path(block.identifier).expanduser().is_dir():
        return ModelSource(type="local", identifier=block.identifier)
    try:
        return ModelSource(type="huggingface", identifier=block.identifier, revision=block.revision)
    except ValidationError as error:
        raise TerminalError(
            f"the reward model {block.identifier!r} is neither a folder that exists nor a hub id "
            "of the form owner/name"
        ) from error


def _local_place(identifier: str) -> str:
    if "://" not in identifier:
        return str(Path(identifier).expanduser())
    from mloc_dagster.executors.training.weights import fetched_model

    return str(fetched_model(identifier))


def _load_whole(place: str, tokenizer: Any, dtype: Any, origin: Mapping[str, Any]) -> Any:
    from transformers import AutoModelForSequenceClassification

    model, found = AutoModelForSequenceClassification.from_pretrained(
        place, dtype=dtype, use_safetensors=True, output_loading_info=True, **origin
    )
    # Weights that are not there would be drawn at random, and so would the rewards.
    if missing := sorted(found["missing_keys"]):
        raise TerminalError(
            f"the reward model {place!r} is no classifier: it has no weights for "
            f"{', '.join(missing[:3])}"
        )
    return model


def _load_adapter(place: str, tokenizer: Any, dtype: Any, origin: Mapping[str, Any]) -> Any:
    """Loads the adapter that a `reward` task leaves, with the one logit that it trains."""
    from peft import PeftConfig, PeftModel
    from transformers import AutoModelForSequenceClassification

    config = PeftConfig.from_pretrained(place)
    if str(getattr(config.task_type, "value", config.task_type)) != "SEQ_CLS":
        raise TerminalError(f"the reward model {place!r} is an adapter of no classifier")
    base = AutoModelForSequenceClassification.from_pretrained(
        str(config.base_model_name_or_path), dtype=dtype, use_safetensors=True, num_labels=1
    )
    if len(tokenizer) > base.get_input_embeddings().weight.shape[0]:
        base.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    return PeftModel.from_pretrained(base, place).merge_and_unload()
