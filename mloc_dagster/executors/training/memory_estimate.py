"""How much memory a training takes, by its model's `config.json`; what to change if too much.

accelerate's estimator needs the model built, and knows of no activations, adapters, frozen weights,
reference models or optimisers: it multiplies the weights by four.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mloc_dagster.executors.training.devices import mixed_precision, weights_dtype
from mloc_dagster.models import builtin_model_path
from mloc_dagster.schema import Lora, OnlineSpec, TrainingSpec

# The same sizes under other names, mostly GPT-2's.
_NAMES = {
    "hidden_size": ("hidden_size", "n_embd", "d_model"),
    "num_hidden_layers": ("num_hidden_layers", "n_layer", "num_layers", "n_layers"),
    "num_attention_heads": ("num_attention_heads", "n_head", "num_heads", "n_heads"),
    "intermediate_size": ("intermediate_size", "n_inner", "ffn_dim"),
    "max_position_embeddings": ("max_position_embeddings", "n_positions", "max_seq_len"),
}
# Their feed-forward layers are two matrices; those of all that came after Llama are three.
_UNGATED = frozenset(
    {"gpt2", "gpt_neo", "gpt_neox", "gptj", "gpt_bigcode", "opt", "bloom", "falcon", "phi", "mpt"}
)


@dataclass(frozen=True, slots=True)
class ModelShape:
    """Sizes of a model.

    Attributes:
        vocab: Rows of the embeddings.
        hidden: Width.
        layers: Depth.
        heads: Attention heads.
        attention: Width of all queries.
        key_value: Width of all keys.
        intermediate: Width of a feed-forward layer; of all experts together.
        active: Width of those experts that one token goes through.
        gated: Whether the feed-forward layers have a gate.
        tied: Whether the output layer is the embeddings.
        max_length: Positions at most.
    """

    vocab: int
    hidden: int
    layers: int
    heads: int
    attention: int
    key_value: int
    intermediate: int
    active: int
    gated: bool
    tied: bool
    max_length: int

    @property
    def matrices(self) -> Mapping[str, tuple[int, int]]:
        """Inputs and outputs of each linear layer in a block, by Llama's names."""
        found = {
            "q_proj": (self.hidden, self.attention),
            "k_proj": (self.hidden, self.key_value),
            "v_proj": (self.hidden, self.key_value),
            "o_proj": (self.attention, self.hidden),
            "up_proj": (self.hidden, self.intermediate),
            "down_proj": (self.intermediate, self.hidden),
        }
        return {**found, "gate_proj": (self.hidden, self.intermediate)} if self.gated else found

    @property
    def parameters(self) -> int:
        """How many weights it has, biases aside."""
        block = sum(inputs * outputs for inputs, outputs in self.matrices.values())
        embeddings = self.vocab * self.hidden * (1 if self.tied else 2)
        return self.layers * (block + 2 * self.hidden) + self.hidden + embeddings


def shape_of(config: Mapping[str, Any]) -> ModelShape | None:
    """Returns the sizes in a model's `config.json`; None if they are not all there."""
    config = {**config, **(config.get("text_config") or {})}
    hidden = _number(config, "hidden_size")
    layers = _number(config, "num_hidden_layers")
    heads = _number(config, "num_attention_heads")
    vocab = config.get("vocab_size")
    if not (hidden and layers and heads and vocab):
        return None
    head = config.get("head_dim") or hidden // heads
    experts = config.get("num_local_experts") or config.get("num_experts") or 1
    width = config.get("moe_intermediate_size") if experts > 1 else None
    width = width or _number(config, "intermediate_size") or 4 * hidden
    return ModelShape(
        vocab=vocab,
        hidden=hidden,
        layers=layers,
        heads=heads,
        attention=heads * head,
        key_value=(config.get("num_key_value_heads") or heads) * head,
        intermediate=experts * width,
        active=min(experts, config.get("num_experts_per_tok") or experts) * width,
        gated=config.get("model_type") not in _UNGATED,
        tied=bool(config.get("tie_word_embeddings", config.get("model_type") == "gpt2")),
        max_length=_number(config, "max_position_embeddings") or 1 << 20,
    )


def _number(config: Mapping[str, Any], name: str) -> int | None:
    found = (config.get(each) for each in _NAMES[name])
    return next((int(each) for each in found if each), None)


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


def estimate_memory(
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


CONFIG_NAME = "config.json"


def estimate_of(spec: TrainingSpec, start_from: Path | None = None) -> MemoryEstimate | None:
    """Returns what a training will take; None where the model's config is not at hand.

    Args:
        spec: The task's spec.
        start_from: Weights that it starts from instead of the model's own.
    """
    source = spec.model.source
    places = [] if start_from is None else [start_from]
    if source.type == "builtin":
        places.append(builtin_model_path(source.identifier))
    elif source.type == "local":
        places.append(Path(source.identifier).expanduser())
    for place in places:
        config = place / CONFIG_NAME
        if config.is_file():  # an adapter has none
            on_gpu = not spec.enforce_cpu and spec.resources.hardware.gpu.count > 0
            device = "cuda" if on_gpu else "cpu"
            return estimate_memory(json.loads(config.read_text()), spec, device=device)
    return None
