"""Options that a training cannot combine, reporters and weight sharding included.

The template's compiler refuses by this table, and so does the process that trains.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import cast

from mloc_dagster.schema.answer_forms import Path
from mloc_dagster.schema.engine_type import Refusal
from mloc_dagster.schema.task import OnlineSpec, PpoSpec, TrainingSpec
from mloc_dagster.schema.training.ppo import refused_in_ppo
from mloc_dagster.schema.training.spec import Training

REPORTERS: Mapping[str, str] = MappingProxyType(
    {
        "azure_ml": "azureml",
        "clearml": "clearml",
        "codecarbon": "codecarbon",
        "comet_ml": "comet_ml",
        "dagshub": "dagshub",
        "dvclive": "dvclive",
        "flyte": "flytekit",
        "mlflow": "mlflow",
        "neptune": "neptune",
        "swanlab": "swanlab",
        "tensorboard": "tensorboard",
        "trackio": "trackio",
        "wandb": "wandb",
    }
)
"""The names that transformers 5.19 knows, each with the package that it imports."""

_ALL_OR_NOTHING = frozenset(("all", "none"))


def reporters(training: Training) -> tuple[str, ...]:
    """Returns the names in `report_to`; `all` (whatever is installed) and `none` are no names."""
    given = (training.model_extra or {}).get("report_to")
    names = cast("list[object]", given) if isinstance(given, list) else [given]
    return tuple(str(name) for name in names if name is not None and name not in _ALL_OR_NOTHING)


_PARTITIONED = 3
"""The stage of DeepSpeed's ZeRO that spreads weights; 1 and 2 spread what belongs to them."""

_FLAT = 1
"""The version of FSDP that transformers 5.20 takes away, whose models cannot be called in parts."""


def spreads_weights(training: Training) -> bool:
    """Tells whether each process holds but a part of the weights: FSDP, or DeepSpeed's stage 3."""
    return bool(_extra(training, "fsdp")) or _zero_stage(training) == _PARTITIONED


def refused_spreading(training: Training) -> tuple[str, str] | None:
    """Returns what of the options that spread weights cannot be had.

    Args:
        training: The block `training`.

    Returns:
        The option's name and the reason; None when all is well.
    """
    fsdp, config = _extra(training, "fsdp"), _extra(training, "fsdp_config")
    if fsdp and training.deepspeed:
        return "fsdp", "fsdp and deepspeed both spread the training: give one of them"
    if config and not fsdp:
        return "fsdp_config", "fsdp_config does nothing by itself: set fsdp: true as well"
    if fsdp and isinstance(config, Mapping):
        given = cast("Mapping[str, object]", config)
        version = given.get("version", given.get("fsdp_version"))
        if str(version) == str(_FLAT):
            return "fsdp_config", (
                "version 1 of FSDP is on its way out of transformers, and its models cannot be "
                "measured: leave version out, which is 2"
            )
    return None


def _extra(training: Training, name: str) -> object:
    return (training.model_extra or {}).get(name)


def _zero_stage(training: Training) -> object:
    zero = (training.deepspeed or {}).get("zero_optimization")
    return zero.get("stage") if isinstance(zero, Mapping) else None


ROLLOUTS: Mapping[str, str] = MappingProxyType(
    {
        "max_completion_length": "max_new_tokens",
        "temperature": "temperature",
        "top_p": "top_p",
        "top_k": "top_k",
    }
)
"""TRL's options of sampling, and what they are called in `generation`."""

WEIGHTS_ONLY = (
    "save_only_model: checkpoints without the optimiser's state cannot be resumed: a training that "
    "is interrupted starts again from its first step"
)


def refused_in_training(spec: TrainingSpec) -> Iterator[Refusal]:
    """Yields what of a training cannot be had, with its place below the spec."""
    training = spec.training
    if training.bf16 and training.fp16:
        yield Refusal(("training", "fp16"), "bf16 and fp16 cannot both be true: remove one")
    spreading = refused_spreading(training)
    if spreading is not None:
        yield Refusal(("training", spreading[0]), spreading[1])
    if spec.enforce_cpu and spec.require_gpu:
        yield Refusal(
            ("require_gpu",), "enforce_cpu and require_gpu cannot both be true: remove one"
        )
    for number, adapter in enumerate(spec.model.adapters):
        if adapter.apply != "merge":
            yield Refusal(
                ("model", "adapters", number, "apply"),
                f"apply: {adapter.apply} is for inference: a training takes apply: merge, or goes "
                "on with the adapter in checkpoint.load",
            )
    if spec.method.calls_tools and training.tools:
        yield from _refused_tools(spec)
    if isinstance(spec, PpoSpec):
        yield from refused_in_ppo(spec)
    elif isinstance(spec, OnlineSpec) and spec.method.groups:
        yield from _refused_rollouts(spec)


def weights_only(spec: TrainingSpec) -> bool:
    """Tells whether checkpoints lack what resuming needs."""
    return option_of(spec, "save_only_model") is True


def processes_of(spec: TrainingSpec) -> int:
    """Returns how many processes train together on a worker that has what the template asks for."""
    if spec.method.single_process:
        return 1
    if spec.training.num_processes is not None:
        return spec.training.num_processes
    return 1 if spec.enforce_cpu else max(1, spec.resources.hardware.gpu.count)


def option_of(spec: TrainingSpec, name: str) -> object:
    """Returns an option that is the library's own; None where the template does not give it."""
    return (spec.training.model_extra or {}).get(name)


def number_of(spec: TrainingSpec, name: str, default: int) -> int:
    """Returns an option that is TRL's own; null is its default there, too."""
    given = option_of(spec, name)
    return default if given is None else cast("int", given)


def generations_of(spec: OnlineSpec) -> int:
    """Returns how many answers to a prompt are compared with one another."""
    return number_of(spec, "num_generations", spec.method.groups or 1)


def _refused_tools(spec: TrainingSpec) -> Iterator[Refusal]:
    training = spec.training
    for number, tool in enumerate(training.tools):
        if tool.call_effect == "write":
            yield Refusal(
                ("training", "tools", number),
                f"the effect of this tool ({tool.kind}) is write, and a training calls for each of "
                "its answers, and again where it goes on from a checkpoint: write effect: read, or "
                "idempotent, if that is true of it",
            )
    if spec.data.format == "plain" or "separator" in spec.data.model_fields_set:
        place = "format" if spec.data.format == "plain" else "separator"
        yield Refusal(
            ("data", place),
            f"tools are called in chats, and data.{place} makes plain texts of the rows: leave it "
            "out",
        )
    if spreads_weights(training):
        yield Refusal(
            ("training", "tools"),
            "weights that are spread over processes (fsdp, stage 3 of deepspeed) need all of them "
            "for each turn, and with tools each has turns of its own: leave out one of the two",
        )


def _refused_rollouts(spec: OnlineSpec) -> Iterator[Refusal]:
    if not spec.generation.do_sample:
        yield Refusal(
            ("generation", "do_sample"),
            "do_sample: false gives every answer to a prompt the same text, and nothing to "
            "compare: leave it out",
        )
    for theirs, ours in ROLLOUTS.items():
        if ours in spec.generation.model_fields_set and option_of(spec, theirs) is not None:
            yield Refusal(
                ("training", theirs),
                f"generation.{ours} and training.{theirs} say the same thing: give one of them",
            )
    yield from _refused_groups(spec)


def _refused_groups(spec: OnlineSpec) -> Iterator[Refusal]:
    """Yields why answers do not fall into whole groups, one for each prompt."""
    names = ("num_generations", "generation_batch_size", "steps_per_generation")
    given = [option_of(spec, name) for name in names]
    if any(each is not None and type(each) is not int for each in given):
        return  # said of the value itself
    answers = generations_of(spec)
    if answers < 2:
        yield Refusal(
            ("training", "num_generations"),
            f"num_generations {answers} leaves no answer to compare with: at least 2",
        )
        return
    training, processes = spec.training, processes_of(spec)
    together = training.per_device_train_batch_size * processes
    lot = number_of(spec, "generation_batch_size", 0)
    steps = number_of(spec, "steps_per_generation", 0)
    if lot and steps:
        reason = "generation_batch_size and steps_per_generation say the same thing: give one"
        yield Refusal(("training", "steps_per_generation"), reason)
    elif lot and lot % together:
        yield Refusal(
            ("training", "generation_batch_size"),
            f"generation_batch_size {lot} is no multiple of the {together} answers of a batch "
            f"({_product(spec, processes)})",
        )
    elif (lot or together * (steps or training.gradient_accumulation_steps)) % answers:
        yield _uneven(spec, lot, steps, answers, processes)


def _uneven(spec: OnlineSpec, lot: int, steps: int, answers: int, processes: int) -> Refusal:
    training = spec.training
    if lot:
        place, how = "generation_batch_size", "generation_batch_size"
    else:
        place = "num_generations" if option_of(spec, "num_generations") is not None else ""
        lot = training.per_device_train_batch_size * processes
        lot *= steps or training.gradient_accumulation_steps
        last = "steps_per_generation" if steps else "gradient_accumulation_steps"
        how = f"{_product(spec, processes)} × {last}"
    path: Path = ("training", place or "per_device_train_batch_size")
    return Refusal(
        path,
        f"the {lot} answers that are sampled together ({how}) are no multiple of num_generations "
        f"{answers}: each prompt gets {answers}",
    )


def _product(spec: OnlineSpec, processes: int) -> str:
    many = f" × {processes} processes" if processes > 1 else ""
    return f"per_device_train_batch_size {spec.training.per_device_train_batch_size}{many}"
