"""What the models that ship have in common: their architecture, how they answer, their files."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

ASKED_AT_ONCE = 100


def untrained_model(
    tokenizer: PreTrainedTokenizerBase,
    *,
    layers: int,
    intermediate_size: int,
    new_tokens: int,
    rope_theta: float = 10_000.0,
) -> LlamaForCausalLM:
    """Returns an untrained Llama, drawn from torch's global seed.

    Args:
        tokenizer: Its vocabulary, its ends and its longest text.
        layers: How many.
        intermediate_size: Of the layers' MLPs.
        new_tokens: How long an answer gets, unless the caller says so.
        rope_theta: The base of the rotary positions.
    """
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=intermediate_size,
        num_hidden_layers=layers,
        num_attention_heads=4,  # of 32, a size that vLLM's kernels take
        num_key_value_heads=2,
        max_position_embeddings=tokenizer.model_max_length,
        tie_word_embeddings=True,
        bos_token_id=None,
        rope_parameters={"rope_type": "default", "rope_theta": rope_theta},
        **ends,
    )
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(do_sample=False, max_new_tokens=new_tokens, **ends)
    for layer in model.model.layers:
        # Each block starts as the identity.
        torch.nn.init.zeros_(layer.self_attn.o_proj.weight)
        torch.nn.init.zeros_(layer.mlp.down_proj.weight)
    return model


@torch.inference_mode()
def answer(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, texts: list[str]
) -> list[str]:
    """Answers rendered chats greedily."""
    answers: list[str] = []
    for start in range(0, len(texts), ASKED_AT_ONCE):
        inputs = tokenizer(texts[start : start + ASKED_AT_ONCE], padding=True, return_tensors="pt")
        output = model.generate(**inputs)[:, inputs["input_ids"].shape[1] :]
        answers += tokenizer.batch_decode(output, skip_special_tokens=True)
    return answers


def write_card(output: Path, card: Path, **figures: object) -> str:
    """Writes the model card of saved weights, and returns a line about these.

    Args:
        output: Where the model was saved.
        card: The text, with names in braces where figures belong.
        figures: The figures, beside `megabytes`.
    """
    weights = (output / "model.safetensors").read_bytes()
    text = card.read_text(encoding="utf-8").format(megabytes=f"{len(weights) / 1e6:.2f}", **figures)
    (output / "README.md").write_text(text, encoding="utf-8")
    return f"{len(weights):,} bytes, sha256 {hashlib.sha256(weights).hexdigest()}"
