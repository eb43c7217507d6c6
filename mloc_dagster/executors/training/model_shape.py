"""The sizes of a decoder-only transformer, read from its `config.json`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

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
