"""The options that an installed library accepts, read from its source without importing it."""

from __future__ import annotations

import ast
import importlib.util
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType

from pydantic import JsonValue

from mloc_dagster.errors import nearest_hint
from mloc_dagster.schema.training.method import TrainingMethod
from mloc_dagster.schema.training.spec import Lora, Training


@cache
def class_fields(source: str, class_name: str) -> Mapping[str, str]:
    """Returns the annotated public fields of a class, class variables not, by name.

    Args:
        source: The source of a module.
        class_name: The class in it.

    Returns:
        The annotation of each field, as it is written.
    """
    for node in ast.parse(source).body:
        if isinstance(node, ast.ClassDef) and node.name == class_name:
            return {
                field.target.id: ast.unparse(field.annotation)
                for field in node.body
                if isinstance(field, ast.AnnAssign)
                and isinstance(field.target, ast.Name)
                and not field.target.id.startswith("_")
                and "ClassVar" not in ast.unparse(field.annotation)
            }
    return {}


@cache
def enum_values(source: str) -> Mapping[str, frozenset[str]]:
    """Returns the texts of each class of a module whose members are texts, by the class's name."""
    found: dict[str, frozenset[str]] = {}
    for node in ast.parse(source).body:
        if not isinstance(node, ast.ClassDef):
            continue
        values = [each.value for each in node.body if isinstance(each, ast.Assign)]
        texts = frozenset(text for each in values for text in _texts(each))
        if texts and any("Enum" in ast.unparse(base) for base in node.bases):
            found[node.name] = texts
    return found


@cache
def compared_texts(source: str, name: str) -> frozenset[str]:
    """Returns the texts that the code of a module compares a variable or attribute with."""
    return frozenset(
        text
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Compare) and ast.unparse(node.left).split(".")[-1] == name
        for other in node.comparators
        for text in _texts(other)
    )


def library_source(package: str, path: str) -> str:
    """Returns the source of a module of an installed package; empty where there is none."""
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        return ""
    source = Path(found.submodule_search_locations[0]) / path
    return source.read_text() if source.is_file() else ""


def _texts(node: ast.expr) -> list[str]:
    parts = node.elts if isinstance(node, ast.List | ast.Tuple | ast.Set) else [node]
    values = [each.value for each in parts if isinstance(each, ast.Constant)]
    return [each for each in values if isinstance(each, str)]


OURS = frozenset({"save_model", "num_processes", "tools"})
"""What stands in `training` and no trainer sees."""

_HUB = "weights are published by the task's output, not by the trainer"
_EVALUATION = "measuring is described in the block `evaluation`"
_ROWS = "rows are described in the block `data`, and read before the trainer starts"
_MODEL = "the model is described in the block `model`"
_PHASE = "a training task trains, and nothing else"

OWNED: Mapping[str, str] = MappingProxyType(
    {
        "output_dir": "the task's folder is chosen by mloc",
        "resume_from_checkpoint": "a task that is tried again resumes by itself; to start from "
        "other weights use the block `checkpoint`",
        "logging_dir": "TensorBoard's files go to the task's own logs",
        "local_rank": "processes are started by mloc",
        "do_train": _PHASE,
        "do_eval": _EVALUATION,
        "do_predict": _PHASE,
        "eval_strategy": _EVALUATION,
        "eval_steps": _EVALUATION,
        "eval_delay": _EVALUATION,
        "eval_on_start": _EVALUATION,
        "per_device_eval_batch_size": _EVALUATION,
        "eval_accumulation_steps": _EVALUATION,
        "eval_do_concat_batches": _EVALUATION,
        "eval_packing": _EVALUATION,
        "eval_use_gather_object": _EVALUATION,
        "batch_eval_metrics": _EVALUATION,
        "bf16_full_eval": _EVALUATION,
        "fp16_full_eval": _EVALUATION,
        "include_for_metrics": _EVALUATION,
        "num_generations_eval": _EVALUATION,
        "prediction_loss_only": _EVALUATION,
        "load_best_model_at_end": _EVALUATION,
        "metric_for_best_model": _EVALUATION,
        "greater_is_better": _EVALUATION,
        "dataset_text_field": _ROWS,
        "dataset_kwargs": _ROWS,
        "model_init_kwargs": _MODEL,
        "trust_remote_code": _MODEL,
        "push_to_hub": _HUB,
        "hub_token": _HUB,
        "hub_private_repo": _HUB,
        "hub_model_id": _HUB,
        "hub_strategy": _HUB,
        "hub_always_push": _HUB,
        "hub_revision": _HUB,
        "log_completions_hub_repo": _HUB,
    }
)
"""Options that may not stand in `training`, and why."""


_PARTS = ("config", "trainer")
"""Files of a TRL trainer."""

_NUMBERS = {"int": "a whole number", "float": "a number", "bool": "true or false"}
"""What the fields of libraries that hold numbers take, in words."""


def trainer_argument_names(method: TrainingMethod) -> frozenset[str]:
    """Returns the options of a method's trainer, those that mloc sets itself included.

    Of one of TRL's: the fields of its config and of those it inherits from; empty when TRL is not
    installed.
    """
    return method.options if method.config is None else frozenset(_trainer_fields(method.config))


def lora_argument_names() -> frozenset[str]:
    """Returns the fields of `peft.LoraConfig`; empty when PEFT is not installed."""
    own = frozenset(_lora_fields())
    return own | frozenset(Lora.model_fields) if own else own


def refused_lora_value(name: str, value: JsonValue) -> str | None:
    """Returns why an option of `lora` cannot have a value, as far as PEFT's source tells."""
    return _refused_number(_lora_fields().get(name, ""), value)


def refused_value(method: TrainingMethod, name: str, value: JsonValue) -> str | None:
    """Returns why an option of `training` cannot have a value, as far as the libraries tell.

    Args:
        method: How is trained.
        name: The option.
        value: Its value, as it was written.

    Returns:
        What is wrong; None where nothing is, or where the library is not installed.
    """
    config = method.config
    if name == "loss_type" and config is not None:
        return _unknown_text(value, _loss_types(config))
    # Of the options of a trainer that is not TRL's, only the schedule is transformers' own.
    fields = _root_fields() if config is None else _trainer_fields(config)
    if config is None and name != "lr_scheduler_type":
        return None
    kinds = fields.get(name, "")
    known = [values for kind, values in _enums().items() if kind in kinds.split(" | ")]
    if known:
        return _unknown_text(value, frozenset[str]().union(*known))
    return None if name in Training.model_fields else _refused_number(kinds, value)


def _unknown_text(value: JsonValue, known: frozenset[str]) -> str | None:
    given = value if isinstance(value, list) else [value]
    wrong = [each for each in given if isinstance(each, str) and each not in known]
    if not wrong or not known:
        return None
    return f"unknown value {wrong[0]!r}{nearest_hint(str(wrong[0]), known)}"


def _refused_number(kinds: str, value: JsonValue) -> str | None:
    """Returns why a value is none of a field's that takes numbers, true or false alone."""
    taken = set(kinds.split(" | ")) - {"None"}
    if not taken or not taken <= _NUMBERS.keys() or value is None:
        return None
    if isinstance(value, bool):
        fits = "bool" in taken
    elif isinstance(value, int):
        fits = bool(taken & {"int", "float"})
    else:
        fits = isinstance(value, float) and "float" in taken
    expected = " or ".join(words for kind, words in _NUMBERS.items() if kind in taken)
    return None if fits else f"expected {expected}, got {json.dumps(value, ensure_ascii=False)}"


@cache
def _trainer_fields(config: str) -> Mapping[str, str]:
    own = class_fields(library_source("trl", f"trainer/{_module(config)}_config.py"), config)
    if not own:
        return {}
    base = class_fields(library_source("trl", "trainer/base_config.py"), "_BaseConfig")
    return {**_root_fields(), **base, **own}


@cache
def _root_fields() -> Mapping[str, str]:
    return class_fields(library_source("transformers", "training_args.py"), "TrainingArguments")


@cache
def _lora_fields() -> Mapping[str, str]:
    return class_fields(library_source("peft", "tuners/lora/config.py"), "LoraConfig")


@cache
def _enums() -> Mapping[str, frozenset[str]]:
    """Returns the values of the options of transformers that have a fixed set of them."""
    files = ("trainer_utils.py", "training_args.py")
    return {
        kind: values
        for file in files
        for kind, values in enum_values(library_source("transformers", file)).items()
    }


@cache
def _loss_types(config: str) -> frozenset[str]:
    """Returns the losses that a trainer looks for: TRL has no list of them."""
    parts = [library_source("trl", f"trainer/{_module(config)}_{part}.py") for part in _PARTS]
    return frozenset(
        text
        for source in parts
        for name in ("loss_type", "loss_types")
        for text in compared_texts(source, name)
    )


def _module(config: str) -> str:
    return config.removesuffix("Config").lower()


def refused_argument(method: TrainingMethod, name: str) -> str | None:
    """Returns why an option may not stand in `training`; None when it may.

    Without TRL only the options that mloc sets itself are refused: the workers may have TRL.
    """
    if name in OWNED:
        return f"{name!r} does not belong here: {OWNED[name]}"
    if name == "tools" and not method.calls_tools:
        return "'tools' are for grpo: with no other method does the model call tools in training"
    known = trainer_argument_names(method)
    if not known or name in known or name in OURS:
        return None
    trainer = "the trainer" if method.config is None else f"TRL's {method.config}"
    return f"{trainer} has no option {name!r}{nearest_hint(name, known - OWNED.keys())}"
