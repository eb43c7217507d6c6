"""How much memory a training takes, roughly, and what to change when it takes too much."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mloc_dagster.executors.training.devices import mixed_precision, weights_dtype
from mloc_dagster.executors.training.model_shape import ModelShape, shape_of
from mloc_dagster.schema.task import OnlineSpec, TrainingSpec
from mloc_dagster.schema.training import Lora

DEFAULT_LENGTH = 1024  # TRL's `max_length`
PROMPT_LENGTH = 512  # a guess at the prompts that answers are sampled to
_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
# With the scales of their blocks, and the parts that stay whole.
_QUANTISED_BYTES = {"load_in_4bit": 0.55, "load_in_8bit": 1.05}
# Bytes that an optimiser keeps for each trained weight; AdamW two averages in float32.
_OPTIMISER_BYTES = {"8bit": 2.0, "4bit": 1.0, "adafactor": 0.1, "lion": 4.0, "sgd": 0.0}
_ADAMW_BYTES = 8.0


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """Bytes that a training takes on its device, in parts.

    Attributes:
        weights_bytes: The model.
        gradient_bytes: A number for each trained weight.
        optimiser_bytes: What the optimiser keeps.
        activation_bytes: What is kept of the layers' outputs until gradients are computed.
        other_models_bytes: The reference model and the reward model.
        trained: Weights that are trained.
        parameters: All weights of the model.
    """

    weights_bytes: int
    gradient_bytes: int
    optimiser_bytes: int
    activation_bytes: int
    other_models_bytes: int
    trained: int
    parameters: int

    @property
    def total_bytes(self) -> int:
        """All parts together."""
        kept = self.weights_bytes + self.gradient_bytes + self.optimiser_bytes
        return kept + self.activation_bytes + self.other_models_bytes

    def text(self) -> str:
        """Returns all parts in a sentence."""
        parts = {
            "weights": self.weights_bytes,
            "gradients": self.gradient_bytes,
            "optimiser": self.optimiser_bytes,
            "activations": self.activation_bytes,
            "reference and reward models": self.other_models_bytes,
        }
        listed = ", ".join(f"{name} {_size(size)}" for name, size in parts.items() if size)
        return (
            f"about {_size(self.total_bytes)} ({listed}) to train {self.trained:,} of "
            f"{self.parameters:,} weights"
        )


def estimate(
    config: Mapping[str, Any],
    spec: TrainingSpec,
    *,
    device: str = "cuda",
    parameters: int | None = None,
) -> MemoryEstimate | None:
    """Works out what a training will take, from the shape of its model.

    Right within a factor of two or so: what kernels and the allocator need is not in it.

    Args:
        config: The model's `config.json`.
        spec: The task's spec.
        device: `cpu` or a GPU.
        parameters: How many weights the model has, if that is known.

    Returns:
        The parts; None if the config does not say how large the model is.
    """
    shape = shape_of(config)
    if shape is None:
        return None
    device = "cpu" if spec.enforce_cpu else device
    own = str(config.get("dtype") or config.get("torch_dtype") or "float32")
    each = _BYTES.get(weights_dtype(spec, device, own), 4)
    computed = each if mixed_precision(spec, device) == "no" else 2
    parameters = parameters or shape.parameters
    trained = parameters if spec.lora is None else _adapter_parameters(shape, spec.lora)
    adapter = 0 if spec.lora is None else 4 * trained  # adapters are float32
    option = None if device == "cpu" else spec.model.transformers.quantised
    weights = int(_QUANTISED_BYTES.get(option or "", each) * parameters)
    return MemoryEstimate(
        weights_bytes=weights + adapter,
        gradient_bytes=trained * (each if spec.lora is None else 4),
        optimiser_bytes=int(trained * _optimiser_bytes(spec)),
        activation_bytes=_activation_bytes(shape, spec, computed),
        other_models_bytes=weights * _other_models(spec),
        trained=trained,
        parameters=parameters,
    )


def is_out_of_memory(error: BaseException) -> bool:
    """Tells whether an error, or what it came of, is a want of memory."""
    seen: BaseException | None = error
    while seen is not None:
        text = str(seen).lower()
        said = "out of memory" in text or "can't allocate memory" in text or "alloc_failed" in text
        if isinstance(seen, MemoryError) or type(seen).__name__ == "OutOfMemoryError":
            return True
        if isinstance(seen, RuntimeError) and said:
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def explain_oom(error: BaseException, estimate: MemoryEstimate | None, spec: TrainingSpec) -> str:
    """Returns what to tell the user of a training that ran out of memory.

    Args:
        error: What was raised.
        estimate: What the training takes; None if nobody knows.
        spec: The task's spec.
    """
    reason = str(error).partition("\n")[0][:300] or type(error).__name__
    takes = f"; it takes {estimate.text()}" if estimate else ""
    ways = [f"{index}. {way}" for index, way in enumerate(_ways(spec, estimate), start=1)]
    if not ways:
        ways = ["use a smaller model, or a device with more memory"]
    return f"the training ran out of memory ({reason}){takes}. What helps:\n" + "\n".join(ways)


def _ways(spec: TrainingSpec, estimate: MemoryEstimate | None) -> Iterator[str]:
    """Yields what lowers the memory, what costs least first."""
    training, batch = spec.training, spec.training.per_device_train_batch_size
    if batch > 1:
        saved = f", about {_size(estimate.activation_bytes // 2)} less" if estimate else ""
        steps = training.gradient_accumulation_steps
        yield (
            f"training.per_device_train_batch_size: {batch // 2} instead of {batch}{saved} "
            f"(gradient_accumulation_steps: {steps * 2} instead of {steps} trains the same)"
        )
    if not training.gradient_checkpointing:
        yield "training.gradient_checkpointing: true, which computes a third more"
    length = training.max_length or DEFAULT_LENGTH
    if length > 256:
        yield f"training.max_length: {length // 2} instead of {length}, which cuts longer rows"
    if spec.lora is None:
        kept = estimate.gradient_bytes + estimate.optimiser_bytes if estimate else 0
        saved = f", up to {_size(kept)} less" if kept else ""
        yield f"a lora block: an adapter is trained instead of all weights{saved}"
        if "8bit" not in (training.optim or ""):
            yield "training.optim: adamw_8bit (needs the extra quantization and a GPU)"
    elif spec.model.transformers.quantised is None and not spec.enforce_cpu:
        yield "model.transformers.load_in_4bit: true (needs the extra quantization and a GPU)"
    if not (training.bf16 or training.fp16 or spec.enforce_cpu):
        yield "training.bf16: true, on a GPU"


def _optimiser_bytes(spec: TrainingSpec) -> float:
    name = (spec.training.optim or "adamw").lower()
    return next((size for part, size in _OPTIMISER_BYTES.items() if part in name), _ADAMW_BYTES)


def _adapter_parameters(shape: ModelShape, block: Lora) -> int:
    targets = block.target_modules
    if targets is None:
        names = {"q_proj", "v_proj"}  # PEFT's choice for most models
    elif isinstance(targets, str):
        names = set(shape.matrices)
    else:
        names = {each.rsplit(".", 1)[-1] for each in targets}
    square = (shape.hidden, shape.hidden)  # a name that Llama does not have
    return block.r * shape.layers * sum(sum(shape.matrices.get(each, square)) for each in names)


def _other_models(spec: TrainingSpec) -> int:
    """Returns how many models of the same size stand beside the one that is trained."""
    default, given = spec.method.reference_beta, spec.training.beta
    compares = default is not None and (default if given is None else given) > 0
    # Under LoRA, the reference is the same model with its adapter off.
    reference = compares and spec.lora is None
    scores = isinstance(spec, OnlineSpec) and spec.reward_model is not None
    return int(reference) + int(scores)


def _activation_bytes(shape: ModelShape, spec: TrainingSpec, each: int) -> int:
    """Returns what one batch takes, with attention that does not keep its scores.

    Per layer and token 34 bytes for each number of the model's width, in numbers of two bytes; 2
    where layers are computed again, and then one layer's in full: Korthikanti et al. 2022,
    "Reducing Activation Recomputation in Large Transformer Models" (arXiv 2205.05198), without the
    term for attention scores. Their feed-forward layers are four times as wide as the model; of the
    34, the 19 that these take grow along. Logits come on top, in float32, with their gradients.
    """
    rows = spec.training.per_device_train_batch_size * (2 if spec.method.in_pairs else 1)
    if isinstance(spec, OnlineSpec):
        length = (spec.training.max_length or PROMPT_LENGTH) + spec.generation.max_new_tokens
    else:
        length = spec.training.max_length or DEFAULT_LENGTH
    tokens = rows * min(length, shape.max_length)
    widths = shape.active * (1.5 if shape.gated else 1.0) / (4 * shape.hidden)
    layer = tokens * shape.hidden * (15 + 19 * widths) * each / 2
    if spec.training.gradient_checkpointing:
        kept = shape.layers * tokens * shape.hidden * each + layer
    else:
        kept = shape.layers * layer
    return int(kept + 2 * 4 * tokens * shape.vocab)


def _size(count: int) -> str:
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count / 1024:.1f} KiB"
